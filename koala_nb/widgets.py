"""Hands-on controls for a notebook, usable by keyboard and screen reader."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
from diffusers import UNet2DConditionModel
from IPython.display import HTML
from PIL import Image

from koala_nb.attention import page
from koala_nb.attention.maps import MARKS, Attention
from koala_nb.core import catalog
from koala_nb.core.errors import first_line
from koala_nb.core.files import Record
from koala_nb.display.page import encoded
from koala_nb.display.tables import table_html
from koala_nb.generation import generate
from koala_nb.models import load
from koala_nb.models import unet as architecture
from koala_nb.models.load import Pipeline
from koala_nb.probes import labels

MAX_STEPS = 100
MAX_GUIDANCE = 20.0
MAX_SEED = 2**31 - 1
SHOWN = 320  # pixels per side on the page
TENSORS = 12  # of a block, the largest first
# JupyterLab keeps the arrow keys for its cells.
KEYS = "By keyboard: Tab to a list, then Home, End, Page Up, Page Down or a first letter."
DIGITS = "1234567890"
UNSURE_KEY, UNDO_KEY = "u", "z"
WIDE = {"description_width": "9em"}


class _Widget(ipywidgets.VBox):
    """A box whose status line a screen reader speaks."""

    description = ""

    def __repr__(self) -> str:
        """Return a text that does not change with the widget's state: notebooks store it."""
        return self.description

    def _say(self, text: str) -> None:
        self.status.value = f'<div role="status" aria-live="polite">{escape(text.strip())}</div>'


class PromptExplorer(_Widget):
    """Text, seed, steps and guidance in, one image out: drawn only at the press of the button.

    Numbers are typed, not slid: a slider's handle has no name that a screen reader could say.
    """

    description = "Prompt explorer: prompt, seed, steps and guidance in, one image out"

    def __init__(
        self,
        pipe: Pipeline,
        prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
    ) -> None:
        recipe = load.model_info(pipe).recipe
        steps = steps or recipe.steps or load.call_default(pipe, "num_inference_steps")
        guidance = recipe.guidance if guidance is None else guidance
        if guidance is None:
            guidance = load.call_default(pipe, "guidance_scale")
        self.pipe, self.size = pipe, size
        text = prompt or recipe.prompt
        self.prompt = ipywidgets.Text(text, description="Prompt", **_style("95%"))
        number = _style("16em")
        self.seed = ipywidgets.BoundedIntText(seed, 0, MAX_SEED, description="Seed", **number)
        self.steps = ipywidgets.BoundedIntText(steps, 1, MAX_STEPS, description="Steps", **number)
        self.guidance = ipywidgets.BoundedFloatText(
            guidance, min=0.0, max=MAX_GUIDANCE, step=0.5, description="Guidance", **number
        )
        self.button = ipywidgets.Button(description="Draw the image", button_style="primary")
        self.button.on_click(lambda _: self.draw())
        self.status = ipywidgets.HTML()
        self.picture = ipywidgets.HTML()
        self._say("Nothing drawn yet.")
        knobs = ipywidgets.HBox([self.seed, self.steps, self.guidance])
        super().__init__([self.prompt, knobs, self.button, self.status, self.picture])

    def draw(self) -> None:
        """Draw with the present settings; any error becomes one sentence in the widget."""
        self._say("Drawing ...")  # the button stays enabled: a disabled one loses the focus
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                image = self._generate()
        except Exception as error:  # the widget is the last to hear of it
            self.picture.value = ""
            self._say(f"No image: {first_line(error)}.")
        else:
            notes = " ".join(str(w.message) for w in caught if w.category is UserWarning)
            self.picture.value = picture(image, self._described())
            self._say(f"Drawn: {self._described()}. {notes}")

    def _generate(self) -> Image.Image:
        if not self.prompt.value.strip():
            raise ValueError("the prompt is empty: write what the image shall show.")
        settings = {"steps": self.steps.value, "guidance": self.guidance.value, "progress": False}
        settings |= {"height": self.size, "width": self.size}
        prompt, seeds = self.prompt.value, [self.seed.value]
        return generate.generate(self.pipe, prompt, seeds, **settings).images[0]

    def _described(self) -> str:
        return (
            f"{self.prompt.value}, seed {self.seed.value}, {self.steps.value} steps, "
            f"guidance {self.guidance.value:g}"
        )


prompt_explorer = PromptExplorer


class _Chooser(_Widget):
    """Drop-down lists that depend on each other, and what they choose; `_show` says it."""

    nothing = "Nothing shown"  # begins the sentence of an error

    def __init__(self, controls: Sequence[ipywidgets.Dropdown]) -> None:
        self.status, self.output = ipywidgets.HTML(), ipywidgets.HTML()
        self.output.add_class("jp-RenderedHTMLCommon")  # JupyterLab's look of a table
        self._filling = False
        for control in controls:
            control.observe(lambda _: self.show(), names="value")
        self.show()
        super().__init__([*controls, ipywidgets.HTML(KEYS), self.status, self.output])

    def show(self) -> None:
        """Show what is chosen; any error becomes one sentence in the widget."""
        if self._filling:
            return
        self._filling = True  # new options change the values, which must not start this again
        try:
            text = self._show()
        except Exception as error:  # the widget is the last to hear of it
            self.output.value = ""
            text = f"{self.nothing}: {first_line(error)}."
        finally:
            self._filling = False
        self._say(text)

    def _show(self) -> str:
        raise NotImplementedError


class UNetExplorer(_Chooser):
    """System, stage and block in; the block's type, parameters and tensors out. Needs no weights.

    A stage or block that the newly chosen system has as well stays chosen, to compare the two.
    """

    description = "U-Net explorer: system, stage and block in, the block's tensors out"
    nothing = "No table"

    def __init__(self, system: str = "koala-lightning-700m") -> None:
        names = [catalog.find(system).name, *(s.name for s in catalog.SYSTEMS if _known(s))]
        self.system = ipywidgets.Dropdown(
            options=list(dict.fromkeys(names)), value=system, description="System", **_style()
        )
        self.stage = ipywidgets.Dropdown(description="Stage", **_style())
        self.block = ipywidgets.Dropdown(description="Block", **_style())
        super().__init__([self.system, self.stage, self.block])

    def _show(self) -> str:
        blocks = _built(self.system.value)[1]
        _fill(self.stage, blocks["stage"])
        _fill(self.block, blocks[blocks["stage"] == self.stage.value]["block"])
        chosen = self.system.value, self.stage.value, self.block.value
        self.output.value = block_table(*chosen).data
        return f"Shown: {', '.join(chosen)}."


unet_explorer = UNetExplorer


def block_table(system: str, stage: str, block: str) -> HTML:
    """Return a block's table: its tensors' shapes, the largest first and at most TENSORS of them.

    `stage` and `block` as in `unet.blocks`; ValueError, listing what there is, otherwise.
    """
    unet, blocks = _built(system)
    here = blocks[blocks["stage"] == stage]
    if here.empty:
        known = ", ".join(dict.fromkeys(blocks["stage"]))
        raise ValueError(f"{system} has no stage {stage!r}: choose one of {known}.")
    if block not in set(here["block"]):
        known = ", ".join(here["block"])
        raise ValueError(f"{stage} of {system} has no block {block!r}: choose one of {known}.")
    about = here[here["block"] == block].iloc[0]
    module = unet.get_submodule(block if stage == "rest" else f"{stage}.{block}")
    tensors = sorted(module.named_parameters(), key=lambda pair: -pair[1].numel())
    rows = [
        {"tensor": name, "shape": " x ".join(map(str, weight.shape)), "parameters": weight.numel()}
        for name, weight in tensors[:TENSORS]
    ]
    caption = (
        f"{system}, {stage}, {block}: {about['type']}, {about['parameters']:,} parameters in "
        f"{len(tensors)} tensors; the largest {len(rows)} of them"
    )
    return HTML(table_html(pd.DataFrame(rows), caption))


class AttentionExplorer(_Chooser):
    """Word, layers and step in, the word's map over its picture out; `attention` was captured."""

    description = "Attention explorer: image, word, layers and step in, the word's map out"
    nothing = "No map"

    def __init__(
        self, attention: Attention, pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> None:
        if not len(pictures) == len(prompts) == attention.images:
            raise ValueError(f"Give {attention.images} pictures and prompts, as were captured.")
        self.attention, self.pictures, self.prompts = attention, pictures, prompts
        labels = [(f"{i + 1}: {prompt}", i) for i, prompt in enumerate(prompts)]
        self.image = ipywidgets.Dropdown(options=labels, description="Image", **_style("95%"))
        self.word = ipywidgets.Dropdown(description="Word", **_style())
        layers = ["all", *attention.layers()]
        self.layers = ipywidgets.Dropdown(options=layers, description="Layers", **_style("95%"))
        self.step = ipywidgets.Dropdown(description="Step", **_style())
        super().__init__([self.image, self.word, self.layers, self.step])

    def _show(self) -> str:
        number, layers = self.image.value, self.layers.value
        steps = self.attention.steps(number)
        _fill(self.step, ["mean", *map(str, range(1, steps + 1))] if steps > 1 else ["mean"])
        step = None if self.step.value == "mean" else int(self.step.value) - 1
        chosen_layers = None if layers == "all" else layers
        prompt = self.prompts[number]
        maps = self.attention.words(prompt, number, layers=chosen_layers, step=step)
        _fill(self.word, [f"{i + 1} {text}" for i, text in enumerate(maps.texts)])
        chosen = maps.array[list(self.word.options).index(self.word.value)]
        text = (
            f"{self.word.value.split(' ', 1)[1]!r}, layers: {layers}, step: {self.step.value}. "
            f"Mean {100 * chosen.mean():.1f} % of the attention, at most {100 * chosen.max():.1f} "
            f"%, {page.place(chosen)}."
        )
        top = float(maps.array[: -len(MARKS)].max())  # one scale for all words
        self.output.value = picture(page.overlay(self.pictures[number], chosen, top), text)
        return text


def answer_keys(answers: Sequence[str]) -> dict[str, str]:
    """Return each answer's key: digits (0 is the tenth), u for unsure; ValueError for over ten."""
    sure = [answer for answer in answers if answer != labels.UNSURE]
    if len(sure) > len(DIGITS):
        raise ValueError(f"{len(sure)} answers have too few digits: give ten or fewer.")
    unsure = {UNSURE_KEY: labels.UNSURE} if labels.UNSURE in answers else {}
    return dict(zip(DIGITS, sure)) | unsure


class Labeller(_Widget):
    """Image and question in, answers out, into `path`: written whole after each of them.

    The same sample and file go on where they stopped; `number` is the pass, each in another order.
    ValueError where the file holds answers of this pass to images outside the sample.
    """

    description = "Labelling widget: one image at a time, answers by key or button"

    def __init__(
        self,
        sample: labels.Sample,
        path: str | Path,
        questions: labels.Questions = labels.QUESTIONS,
        number: int = 1,
    ) -> None:
        self.sample, self.path, self.questions = sample, Path(path), dict(questions)
        self.number = number
        order = np.random.default_rng([0, number]).permutation(len(sample))
        self.order = [int(index) for index in order]
        self.table = sample.rows.iloc[self.order].reset_index(drop=True)
        self.table = self.table.assign(**dict.fromkeys(self.questions), **{"pass": number})
        self._resume()
        self.steps = [(row, q) for row in range(len(sample)) for q in self.questions]
        given = (self.table.loc[row, q] is not None for row, q in self.steps)
        self.at = next((k for k, answered in enumerate(given) if not answered), len(self.steps))
        self.picture, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.key = ipywidgets.Text(description="Key", continuous_update=True)
        self.key.observe(lambda change: self._typed(change["new"]), names="value")
        self.buttons = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap"))
        self._show()
        super().__init__([self.picture, self.status, self.key, self.buttons])

    def _stored(self) -> pd.DataFrame:
        if not self.path.exists():
            return self.table.iloc[:0]
        return labels.read(self.path, self.questions)

    def _resume(self) -> None:
        number, stored = self.number, self._stored()
        earlier = stored[stored["pass"] == number]
        merged = earlier.merge(self.table[labels.IMAGE], on=labels.IMAGE)
        if len(merged) < len(earlier):
            count = len(earlier) - len(merged)
            raise ValueError(
                f"{self.path} holds {count} answers of pass {number} to images outside this "
                "sample: give the same sample, or another file."
            )
        for question in self.questions:
            answers = labels.answers_of(earlier, self.table, question, number)
            self.table[question] = pd.Series(answers, dtype=object)

    def answer(self, answer: str) -> None:
        """Take an answer to the question shown, write the file and show the next one."""
        if self.at == len(self.steps):
            return
        row, question = self.steps[self.at]
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
        row, question = self.steps[self.at - 1]
        self._put(row, question, None)
        self.at -= 1
        self._show("Took the last answer back.")

    def _put(self, row: int, question: str, answer: str | None) -> None:
        before = self.table.at[row, question]
        self.table.at[row, question] = answer
        given = self.table[self.table[list(self.questions)].notna().any(axis=1)]
        try:
            stored = self._stored()  # another widget may have written to it
            others = stored[stored["pass"] != self.number]
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
        left = self.steps[self.at : self.at + 1]
        known = answer_keys(self.questions[left[0][1]]) if left else {}
        if key in known:
            self._safely(lambda: self.answer(known[key]))
        else:
            self._show(f"The key {key} means nothing here.")

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._show(f"Not taken: {error}.")

    def _show(self, message: str = "") -> None:
        if self.at == len(self.steps):
            self.picture.value = ""
            self._offer({})
            return self._say(f"{message} All {len(self.sample)} images are labelled.")
        row, question = self.steps[self.at]
        image = self.sample.image(self.order[row]).convert("RGB")
        name = f"Image {row + 1} of {len(self.sample)}, to be judged by looking"
        self.picture.value = picture(image, name)
        self._offer(answer_keys(self.questions[question]))
        keys = ", ".join(b.description for b in self.buttons.children)
        self._say(f"{message} Image {row + 1} of {len(self.sample)}, {question}? Keys: {keys}.")

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


def _known(system: catalog.System) -> bool:
    return not system.embedded or catalog.unet_parameters(system) is not None


@cache
def _built(system: str) -> tuple[UNet2DConditionModel, pd.DataFrame]:
    unet = architecture.build_unet(system)
    return unet, architecture.blocks(unet)


def _fill(control: ipywidgets.Dropdown, names: pd.Series) -> None:
    before, options = control.value, list(dict.fromkeys(names))
    if list(control.options) != options:
        control.options = options
        control.value = before if before in options else options[0]


def picture(image: Image.Image, alt: str) -> str:
    """Return an image as an HTML element with its alternative text, small ones enlarged."""
    data = encoded(image, max(image.size), "PNG")
    how = "pixelated" if image.width < SHOWN else "auto"
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{SHOWN}" '
        f'style="max-width:100%;image-rendering:{how}">'
    )


def _style(width: str = "30em") -> Record:
    return {"style": WIDE, "layout": ipywidgets.Layout(width=width, max_width="95%")}
