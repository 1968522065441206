"""The labelling widget: one image at a time, blind, by key or button, resumed from its file.

Shown are the image and nothing else: no prompt, no seed, no reading of a scorer, in an order that
depends on the pass alone. `labels` holds the sample, the file and the agreement of two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd

from koala_nb.probes import labels
from koala_nb.widgets import picture

DIGITS = "1234567890"
UNSURE_KEY, UNDO_KEY = "u", "z"


def keys(answers: Sequence[str]) -> dict[str, str]:
    """Return the key of each answer: digits in their order, u for unsure; ValueError for over ten.

    The digit 0 stands for the tenth answer.
    """
    sure = [answer for answer in answers if answer != labels.UNSURE]
    if len(sure) > len(DIGITS):
        raise ValueError(f"keys: {len(sure)} answers have too few digits: give ten or fewer.")
    unsure = {UNSURE_KEY: labels.UNSURE} if labels.UNSURE in answers else {}
    return dict(zip(DIGITS, sure)) | unsure


class Labeller(ipywidgets.VBox):
    """Image and question in, answers out, into `path`: written whole after each of them.

    The same sample and file go on where they stopped; `number` is the pass, each in another order.
    ValueError where the file holds answers of this pass to images outside the sample.
    """

    def __init__(
        self,
        sample: labels.Sample,
        path: str | Path,
        questions: labels.Questions = labels.QUESTIONS,
        number: int = 1,
        seed: int = 0,
    ) -> None:
        self.sample, self.path, self.questions = sample, Path(path), dict(questions)
        self.number = number
        order = np.random.default_rng([seed, number]).permutation(len(sample))
        self.order = [int(index) for index in order]
        self.table = sample.rows.iloc[self.order].reset_index(drop=True)
        self.table = self.table.assign(**dict.fromkeys(self.questions), **{"pass": number})
        self._resume()
        self.asked = [(row, q) for row in range(len(sample)) for q in self.questions]
        given = (self.table.loc[row, q] is not None for row, q in self.asked)
        self.at = next((k for k, answered in enumerate(given) if not answered), len(self.asked))
        self.picture, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.key = ipywidgets.Text(description="Key", continuous_update=True)
        self.key.observe(lambda change: self._typed(change["new"]), names="value")
        self.buttons = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap"))
        self._show()
        super().__init__([self.picture, self.status, self.key, self.buttons])

    def __repr__(self) -> str:
        """Return a text that does not change with the answers: notebooks store it."""
        return "Labelling widget: one image at a time, answers by key or button"

    def _held(self) -> pd.DataFrame:
        """Return what the file holds now, of all passes."""
        there = self.path.exists()
        return labels.read(self.path, self.questions) if there else self.table.iloc[:0]

    def _resume(self) -> None:
        """Fill in what the file holds of this pass."""
        held, number = self._held(), self.number
        own = held[held["pass"] == number]
        merged = own.merge(self.table[labels.IMAGE], on=labels.IMAGE)
        if len(merged) < len(own):
            raise ValueError(
                f"{self.path} holds {len(own) - len(merged)} answers of pass {number} to images "
                "outside this sample: give the same sample, or another file."
            )
        for question in self.questions:
            found = labels.answers_of(own, self.table, question, number)
            self.table[question] = pd.Series(found, dtype=object)

    def answer(self, answer: str) -> None:
        """Take an answer to the question shown, write the file and show the next one."""
        if self.at == len(self.asked):
            return
        row, question = self.asked[self.at]
        if answer not in self.questions[question]:
            raise ValueError(
                f"{answer!r} is no answer to {question}: {', '.join(self.questions[question])}."
            )
        self._put(row, question, answer)
        self.at += 1
        self._show(f"{question}: {answer}.")

    def undo(self) -> None:
        """Take the last answer back, also one of an earlier session."""
        if self.at == 0:
            return self._show("There is nothing to take back.")
        row, question = self.asked[self.at - 1]
        self._put(row, question, None)
        self.at -= 1
        self._show("Took the last answer back.")

    def _put(self, row: int, question: str, answer: str | None) -> None:
        before = self.table.at[row, question]
        self.table.at[row, question] = answer
        given = self.table[self.table[list(self.questions)].notna().any(axis=1)]
        try:
            held = self._held()  # another widget may have written to it
            others = held[held["pass"] != self.number]
            labels.write(self.path, pd.concat([others, given]), self.questions)
        except (OSError, ValueError):
            self.table.at[row, question] = before  # the file and the widget say the same
            raise

    def _typed(self, text: str) -> None:
        """Take the newest key: the browser may send others again that were answered already."""
        if not text:
            return
        key = text[-1].lower()
        self.key.value = ""
        if key == UNDO_KEY:
            return self._safely(self.undo)
        known = {} if self.at == len(self.asked) else keys(self.questions[self._question()])
        if key in known:
            self._safely(lambda: self.answer(known[key]))
        else:
            self._show(f"The key {key} means nothing here.")

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._show(f"Not taken: {error}.")

    def _question(self) -> str:
        return self.asked[self.at][1]

    def _show(self, told: str = "") -> None:
        if self.at == len(self.asked):
            self.picture.value = ""
            self._offer({})
            return self._say(f"{told} All {len(self.sample)} images are labelled.")
        row, question = self.asked[self.at]
        image = self.sample.image(self.order[row]).convert("RGB")
        name = f"Image {row + 1} of {len(self.sample)}, to be judged by looking"
        self.picture.value = picture(image, name)
        self._offer(keys(self.questions[question]))
        known = ", ".join(b.description for b in self.buttons.children)
        self._say(f"{told} Image {row + 1} of {len(self.sample)}, {question}? Keys: {known}.")

    def _offer(self, known: dict[str, str]) -> None:
        """Show a button for each key; one that is there already stays, and keeps the focus."""
        actions: dict[str, tuple[str, Callable[[], None]]]
        actions = {key: (name, partial(self.answer, name)) for key, name in known.items()}
        actions[UNDO_KEY] = ("undo", self.undo)
        before = {button.description: button for button in self.buttons.children}
        self.buttons.children = [
            before.get(f"{key} {name}") or self._button(key, name, action)
            for key, (name, action) in actions.items()
        ]

    def _button(self, key: str, name: str, action: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=f"{key} {name}")
        button.on_click(lambda _: self._safely(action))
        return button

    def _say(self, text: str) -> None:
        self.status.value = f'<div role="status" aria-live="polite">{escape(text.strip())}</div>'
