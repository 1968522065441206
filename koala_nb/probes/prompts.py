"""Prompt sets: CSV files with an id, a prompt and factors; subsamples and seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_file
from koala_nb.core.errors import whole_number
from koala_nb.core.files import read_csv


def prompt_file(probe: str, domain: str) -> Path:
    """Return the prompt set that a probe uses for a domain."""
    return data_file(f"prompts/{probe}_{domain}.csv")


def read_prompts(path: str | Path) -> pd.DataFrame:
    """Read a prompt set: a CSV with `id`, `prompt` and any number of columns of factors.

    Empty factors are None. ValueError for a missing column, file or prompt, or two equal ids.
    """
    kinds = {"id": str, "prompt": str}
    table = read_csv(path, kinds, dtype=kinds, na_values=[""])
    if table.empty:
        raise ValueError(f"{path} holds no prompts: write one a line.")
    for column in kinds:
        if table[column].isna().any():
            row = int(table[column].isna().to_numpy().argmax()) + 2
            raise ValueError(f"{path}, line {row}: {column} is empty.")
    if twice := table.id[table.id.duplicated()].tolist():
        raise ValueError(f"{path}: the id {twice[0]!r} stands twice.")
    return table.astype(object).where(table.notna(), None)


def subsample_prompts(prompts: pd.DataFrame, n: int, by: str | None = None) -> pd.DataFrame:
    """Return about n prompts spread evenly over the set, or over each value of a factor; 0: all."""
    if not 0 < n < len(prompts):
        return prompts
    groups = [g for _, g in prompts.groupby(by, sort=False)] if by else [prompts]
    each = max(1, round(n / len(groups)))
    at = [np.unique(np.linspace(0, len(g) - 1, each).round().astype(int)) for g in groups]
    picked = [g.iloc[places] for g, places in zip(groups, at)]
    return pd.concat(picked).sort_index().reset_index(drop=True)


def prompt_seeds(prompts: int, images: int, first: int = 0) -> list[list[int]]:
    """Return seeds for each prompt alone: common noise would correlate the images of prompts."""
    for name, value in {"images": images, "first": first}.items():
        whole_number(name, value, 0)
    return [list(range(first + i * images, first + (i + 1) * images)) for i in range(prompts)]


def pair_images(
    first: pd.DataFrame, second: pd.DataFrame, on: list[str], suffixes: tuple[str, str]
) -> pd.DataFrame:
    """Return the images that both tables hold side by side, one row per image.

    `on`: the columns that name an image; `suffixes` those of the other columns. ValueError where
    an image stands twice in a table.
    """
    for table in (first, second):
        if (twice := table.duplicated(on)).any():
            image = ", ".join(f"{name} {table.loc[twice, name].iloc[0]}" for name in on)
            raise ValueError(f"The image of {image} stands twice in a table: keep one of them.")
    return first.merge(second, on=on, suffixes=suffixes)
