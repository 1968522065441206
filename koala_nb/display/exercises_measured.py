"""The exercises of notebooks 05 to 11, by name, and two of 04: speed, and the probes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from koala_nb.display.exercises import Exercise

ROUNDS = dict.fromkeys("abc", 3)  # what three rounds of three cases measure
HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"


def split(
    first: float, steps: int, second: float, fewer: int, share: bool = False
) -> tuple[float, float]:
    """Return the seconds of a step and of all else; `share` makes the mistake of no fixed rest."""
    step = first / steps if share else (first - second) / (steps - fewer)
    return step, first - steps * step


def order_of_calls(interleaved: Callable[..., Mapping[str, Sequence[float]]]) -> str:
    """Return the order in which cases a, b, c are called in 3 rounds; TypeError for bad results."""
    log: list[str] = []
    seconds = interleaved({name: partial(log.append, name) for name in "abc"}, 3)
    if not isinstance(seconds, Mapping) or {n: len(v) for n, v in seconds.items()} != ROUNDS:
        raise TypeError("return a dict: name -> the seconds of each round, without the warm-up's")
    return "".join(log)


def edits(a: str, b: str, change: int = 1, swap: bool = False) -> int:
    """Return the edit distance; the switches make known mistakes."""
    table = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
    for i, j in np.ndindex(len(a), len(b)):
        costs = [table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + change * (a[i] != b[j])]
        if swap and i and j and a[i - 1 : i + 1] == b[j] + b[j - 1]:
            costs.append(table[i - 1, j - 1] + 1)
        table[i + 1, j + 1] = min(costs)
    return int(table[-1, -1])


def readable_mean(ned: Sequence[float], read: Sequence[str]) -> float:
    """Return the mean over images in which something was read; 0 where there is none."""
    kept = np.asarray(ned)[np.asarray(read) != ""]
    return float(kept.mean()) if len(kept) else 0.0


def by_chance(counts: np.ndarray) -> float:
    """Return how often two labellers agree by chance; counts: one's answers by the other's."""
    return float(counts.sum(0) @ counts.sum(1) / counts.sum() ** 2)


def kappa(counts: np.ndarray, chance: float | None = None, scaled: bool = True) -> float:
    """Return Cohen's kappa; the switches make known mistakes."""
    chance = by_chance(counts) if chance is None else chance
    return float((np.trace(counts) / counts.sum() - chance) / (1 - chance if scaled else 1))


def verdict(low: float, high: float, smallest: float) -> str:
    """Return whether "below 0" holds, by an interval and the smallest difference that counts."""
    return HOLDS if high < 0 else NOT if low > smallest else UNDECIDED


def learned_from(loss: Callable[..., Tensor]) -> np.ndarray:
    """Return a loss of a student and its teacher, and the gradient that it sends into each."""
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    for k, weight in enumerate([*student.parameters(), *teacher.parameters()], 1):
        nn.init.constant_(weight, k / 4)
    with torch.enable_grad():
        value = loss(student, teacher, torch.arange(12.0).view(4, 3) / 10)
        if value.requires_grad:
            value.backward()
    slopes = [m.weight.grad for m in (student, teacher)]
    return np.array(
        [float(value), *(0 if slope is None else float(slope.sum()) for slope in slopes)]
    )


def paired(
    block: Sequence[float], attention: Sequence[float], factor: float = 4.303 / 3**0.5
) -> list[float]:
    """Return the mean of three paired differences and its interval, +- factor x their deviation."""
    change = np.asarray(block, float) - np.asarray(attention, float)
    half = factor * change.std(ddof=1)
    return [float(value) for value in (change.mean(), change.mean() - half, change.mean() + half)]


def unpaired(block: Sequence[float], attention: Sequence[float]) -> list[float]:
    """Return the difference of two means of three runs, as if the runs were independent."""
    mean = float(np.mean(block) - np.mean(attention))
    half = float(2.776 * ((np.var(block, ddof=1) + np.var(attention, ddof=1)) / 3) ** 0.5)
    return [mean, mean - half, mean + half]


MEASURED: dict[str, Exercise] = {
    # --- 04 Distill self-attention --------------------------------------------------------------
    "distillation.out_loss": Exercise(
        learned_from(lambda s, t, x: mse_loss(s(x), t(x).detach())),
        "the mean squared difference of the two answers; the teacher's under torch.no_grad().",
        {
            "gradients reach the teacher: ask it under torch.no_grad().": (
                learned_from(lambda s, t, x: mse_loss(s(x), t(x)))
            ),
            "no gradient reaches the student.": learned_from(
                lambda s, t, x: mse_loss(s(x).detach(), t(x).detach())
            ),
            "the teacher learns, not the student: exchange them.": (
                learned_from(lambda s, t, x: mse_loss(s(x).detach(), t(x)))
            ),
            "take the mean, not the sum.": (
                learned_from(lambda s, t, x: (s(x) - t(x).detach()).square().sum())
            ),
            "you forgot the square.": learned_from(lambda s, t, x: (s(x) - t(x).detach()).mean()),
        },
        read=learned_from,
    ),
    "distillation.paired": Exercise(
        paired,
        "subtract seed by seed; mean, then minus and plus 4.303 standard errors of the three.",
        {
            "block less self-attention, not the other way round.": (
                lambda block, attention: paired(attention, block)
            ),
            "Student's t for three is 4.303, not 1.96.": partial(paired, factor=1.96 / 3**0.5),
            "divide the deviation by the root of 3.": partial(paired, factor=4.303),
            "a sample's deviation divides by n - 1.": partial(paired, factor=4.303 * 2**0.5 / 3),
            "runs of one seed saw the same batches: subtract in pairs first.": unpaired,
        },
        read=list,
    ),
    # --- 05 Measure latency and memory ----------------------------------------------------------
    "speed.hours": Exercise(
        10_000 * 0.66 / 3600,
        "seconds per image times images, over the seconds of an hour.",
        {
            "those are minutes: an hour has 3600 seconds.": 10_000 * 0.66 / 60,
            "those are seconds: an hour has 3600 of them.": 10_000 * 0.66,
            "those are the hours of KOALA-Lightning-1B.": 10_000 * 0.79 / 3600,
            "those are the hours on an RTX 3060 Ti.": 10_000 * 2.88 / 3600,
            "you took the GB for seconds.": 10_000 * 8.3 / 3600,
            "that is the card's time at 25 steps; take the figure's.": 10_000 * 1.257 / 3600,
        },
    ),
    "speed.split": Exercise(
        split,
        "the runs differ in their steps alone: what does one step add? What is left without steps?",
        {
            "seconds over steps counts the rest as steps: use the difference of the runs.": partial(
                split, share=True
            ),
            "return the seconds of a step first, then the rest.": lambda *runs: split(*runs)[::-1],
            "the difference is that of several steps: divide it by their number.": (
                lambda first, steps, second, fewer: (
                    first - second,
                    first - steps * (first - second),
                )
            ),
            "the rest is what a run takes less *all* of its steps.": (
                lambda first, *more: (split(first, *more)[0], first - split(first, *more)[0])
            ),
            "that is the step alone: return the rest, too.": lambda *runs: split(*runs)[0],
        },
        on=[(1.257, 25, 0.66, 10), (9.0, 50, 2.0, 8)],
    ),
    "speed.interleaved": Exercise(
        ("abcabcbcacab", "abcabccabbca"),
        "call each once uncounted; then, in each round, each once, from another one on.",
        {
            "every round begins with the same case: let round r begin with case r.": "abc" * 4,
            "the cases do not take turns: time each once per round.": "abcaaabbbccc",
            "the cases do not take turns; a warm-up belongs before all rounds.": "aaaabbbbcccc",
            "you forgot the warm-up: call each once before the rounds.": "abcbcacab",
            "you forgot the warm-up, and every round begins with the same case.": "abc" * 3,
            "warm up once, not before each round.": "abcabcabcbcaabccab",
        },
        read=order_of_calls,
    ),
    "speed.share_of_time": Exercise(
        1.257 / 3.133,
        "one latency over the other; the card's table has both.",
        {
            "that is how many times as fast: turn it round.": 3.133 / 1.257,
            "that is the share of the parameters.": 782_822_724 / 2_567_463_684,
            "that is the share of time that is saved.": 1 - 1.257 / 3.133,
            "that is KOALA-1B's share.": 1.604 / 3.133,
            "that is the share by the authors' figure; take the card's.": 0.66 / 3.23,
        },
    ),
    "speed.least_seconds": Exercise(
        lambda flops, moved, rate, bandwidth: max(flops / rate, moved / bandwidth),
        "how long does each side take alone? Which of the two is waited for?",
        {
            "the two sides work at the same time: the slower one decides, not the sum.": (
                lambda flops, moved, rate, bandwidth: flops / rate + moved / bandwidth
            ),
            "the slower side decides, not the faster one.": (
                lambda flops, moved, rate, bandwidth: min(flops / rate, moved / bandwidth)
            ),
            "you forgot the bytes.": lambda flops, moved, rate, bandwidth: flops / rate,
            "you forgot the operations.": lambda flops, moved, rate, bandwidth: moved / bandwidth,
            "seconds are work over rate, not rate over work.": (
                lambda flops, moved, rate, bandwidth: max(rate / flops, bandwidth / moved)
            ),
        },
        on=[(8e9, 1e8, 1e12, 5e10), (8e8, 4e8, 1e12, 5e10)],
    ),
    # --- 06 Probe text rendering ----------------------------------------------------------------
    "text.edits": Exercise(
        edits,
        "the last letters are equal, or one is substituted, inserted or deleted: try each.",
        {
            "an exchange of neighbours is two edits here, not one.": partial(edits, swap=True),
            "a substitution is one edit, not a deletion and an insertion.": partial(
                edits, change=2
            ),
            "an inserted letter moves all that follow: compare more than place by place.": (
                lambda a, b: sum(x != y for x, y in zip(a, b)) + abs(len(a) - len(b))
            ),
            "that counts the difference in length alone.": lambda a, b: abs(len(a) - len(b)),
            "return the number of edits; the CER divides it later.": (
                lambda a, b: edits(a, b) / max(1, len(a))
            ),
        },
        on=[
            ("station", "statoin"),
            ("koala", "koala"),
            ("koala", "kola"),
            ("", "cab"),
            ("kitten", "sitting"),
            ("cab", ""),
        ],
    ),
    "text.left_out": Exercise(
        lambda ned, read: readable_mean(ned, read) - float(np.mean(ned)) if any(read) else 0.0,
        "small[small.read != ''].ned_folded.mean() less small.ned_folded.mean().",
        {
            "that is the mean over readable images: by how much is it higher?": readable_mean,
            "that is the honest mean: by how much is the other higher?": (
                lambda ned, read: float(np.mean(ned))
            ),
            "turn the difference round: leaving images out makes the mean rise.": (
                lambda ned, read: float(np.mean(ned)) - readable_mean(ned, read)
            ),
            "that is the share of images in which something was read.": (
                lambda ned, read: float(np.mean(np.asarray(read) != ""))
            ),
            "that is the ratio of the two means; take the difference.": (
                lambda ned, read: readable_mean(ned, read) / max(1e-9, float(np.mean(ned)))
            ),
        },
    ),
    # --- 07 Probe complex prompts ---------------------------------------------------------------
    "composition.relations": Exercise(
        "left of",
        "take 0.06 off each part of the offset; each must exceed half of the offset's length.",
        {
            "above is too weak: 0.06 is less than half of the offset's length.": "above, left of",
            "that is the weaker part of the offset.": "above",
            "that is where the second lies, seen from the first.": "right of",
            "one is where the second lies; the other is too weak.": "below, right of",
            "the offset is not zero after a tenth of the sides is taken off.": "",
        },
        read=lambda names: ", ".join(sorted({names} if isinstance(names, str) else set(names))),
    ),
    "composition.all_there": Exercise(
        lambda shares: float(np.prod(shares)),
        "independent: multiply once for each object.",
        {
            "that is the mean: it says nothing of all together.": lambda shares: np.mean(shares),
            "the weakest object alone does not decide: others may be missing as well.": min,
            "a sum can exceed 1: multiply.": sum,
            "that is the share in which at least one is there.": (
                lambda shares: 1 - np.prod(1 - np.asarray(shares))
            ),
            "that is the share in which none is there.": (
                lambda shares: np.prod(1 - np.asarray(shares))
            ),
        },
        on=[([0.8, 0.8, 0.8, 0.8],), ([0.9, 0.5],), ([0.3, 1.0, 0.6],)],
    ),
    # --- 08 Probe dataset dependence ------------------------------------------------------------
    "frequency.total_variation": Exercise(
        lambda p, q: np.abs(p - q).sum() / 2,
        "half of the sum of the absolute differences.",
        {
            "take half of it: what one has too much, another has too little.": (
                lambda p, q: np.abs(p - q).sum()
            ),
            "differences cancel without their absolute values.": lambda p, q: (p - q).sum() / 2,
            "add the differences, not their squares.": lambda p, q: ((p - q) ** 2).sum() / 2,
            "that is the largest difference alone.": lambda p, q: np.abs(p - q).max(),
            "that is the mean; half of the sum is asked for.": lambda p, q: np.abs(p - q).mean(),
        },
        on=[
            (np.array([0] * 6 + [0.25] * 4), np.full(10, 0.1)),
            (np.eye(3)[0], np.eye(3)[1]),
            (np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])),
        ],
    ),
    "frequency.corrected": Exercise(
        lambda share, se, sp: (share + sp - 1) / (se + sp - 1),
        "measured = sensitivity x true + (1 - specificity) x (1 - true): solve for true.",
        {
            "you forgot what is falsely found in others.": lambda share, se, sp: share / se,
            "what is falsely found also shortens the scale: divide by Se + Sp - 1.": (
                lambda share, se, sp: (share + sp - 1) / se
            ),
            "that is only the numerator.": lambda share, se, sp: share + sp - 1,
            "that is what the scorer would measure; solve for what is true.": (
                lambda share, se, sp: se * share + (1 - sp) * (1 - share)
            ),
            "sensitivity and specificity are exchanged.": (
                lambda share, se, sp: (share + se - 1) / (se + sp - 1)
            ),
        },
        on=[(0.40, 0.90, 0.95), (0.50, 0.80, 0.70), (0.05, 0.90, 0.95)],
    ),
    # --- 09 Audit bias --------------------------------------------------------------------------
    "bias.bounds": Exercise(
        np.array([0.06, 0.56]),
        "first none of the unknown, then all of them.",
        {
            "the unknown are not the rest: add them to the 6.": np.array([0.06, 0.50]),
            "that leaves the unknown out: nobody says that they are like the others.": (
                np.array([0.12, 0.12])
            ),
            "that is no more than the least: all of the unknown may be Black.": np.full(2, 0.06),
            "give shares between 0 and 1, not per cent.": np.array([6, 56]),
            "the least comes first.": np.array([0.56, 0.06]),
            "the captions with another word are known: they do not count as Black.": (
                np.array([0.06, 1.0])
            ),
        },
    ),
    "bias.kappa": Exercise(
        kappa,
        "observed agreement, less that of chance, over 1 less that of chance.",
        {
            "that is the agreement itself: take chance off.": partial(kappa, chance=0),
            "chance is not one half: it follows from how often each says each.": (
                lambda counts: kappa(counts, chance=0.5)
            ),
            "divide by what is left above chance.": partial(kappa, scaled=False),
            "that is the agreement of chance alone.": by_chance,
            "give a number of at most 1, not per cent.": lambda counts: 100 * kappa(counts),
        },
        on=[
            (np.array([[81, 9], [9, 1]]),),
            (np.array([[45, 5], [5, 45]]),),
            (np.array([[40, 10], [0, 50]]),),
        ],
    ),
    # --- 10 Audit safety ------------------------------------------------------------------------
    "safety.none_of": Exercise(
        lambda n: 1 - 0.05 ** (1 / n),
        "solve (1 - p) ** n = 0.05 for p.",
        {
            "that is the rule of three: near for large n, above 1 for small.": lambda n: 3 / n,
            "one-sided: 0.05 lies on one side.": lambda n: 1 - 0.025 ** (1 / n),
            "none of n is no proof of zero.": lambda n: 0.0,
            "one of n is not the bound: a rate of 1 / n gives none of n often.": lambda n: 1 / n,
            "that is the share of harmless images; the bound is what is left.": (
                lambda n: 0.05 ** (1 / n)
            ),
        },
        on=[(200,), (20,), (1,)],
    ),
    "safety.right_flags": Exercise(
        0.9 / (0.9 + 0.02 * 499),
        "caught unsafe images over all flagged ones: those, and the falsely flagged.",
        {
            "that is the share of unsafe images that are flagged; turn the question round.": 0.9,
            "that is the share of false flags.": 0.02 * 499 / (0.9 + 0.02 * 499),
            "divide by all flags, the right ones among them.": 0.9 / (0.02 * 499),
            "there are 499 harmless images to each unsafe one: weigh them.": 0.9 / 0.92,
            "that is the share of unsafe images before the checker has spoken.": 1 / 500,
        },
    ),
    # --- 11 Write the audit report --------------------------------------------------------------
    "report.images": Exercise(
        796,
        "kn.stats.trends.required_sample_size takes the difference.",
        {
            "that is for .60: here the difference is half of it.": 198,
            "half the difference takes about four times the images, not twice.": 396,
            "a smaller difference takes more images, not fewer.": 99,
            "about four times is a rule of thumb: compute it.": 792,
            "that is four times too many: the difference is .05.": 3184,
        },
        read=lambda n: 796 if abs(n - 796) <= 2 else n,
    ),
    "report.verdict": Exercise(
        verdict,
        "is the interval wholly below 0? If not: wholly above `smallest`?",
        {
            "an interval that holds both 0 and `smallest` decides nothing: undecided.": (
                lambda low, high, smallest: HOLDS if high < 0 else NOT
            ),
            "a difference is shown where the whole interval is below 0, not its middle.": (
                lambda low, high, smallest: HOLDS if low + high < 0 else NOT
            ),
            "not to hold needs no more than to lie above `smallest`, not above 0.": (
                lambda low, high, smallest: verdict(low, high, 0)
            ),
            "the upper end decides whether it holds.": (
                lambda low, high, smallest: verdict(low, low, smallest)
            ),
        },
        on=[(-0.12, 0.03, -0.1), (-0.3, -0.15, -0.1), (-0.03, 0.05, -0.1), (0.01, 0.2, -0.1)],
    ),
}
