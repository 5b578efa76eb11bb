"""Modular arithmetic, the data of grokking: the whole table of `a op b mod p`, a part of it to learn from."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckpt_probe.data.samples import ArraySplit
from ckpt_probe.errors import UsageError

OPERATIONS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}

LARGEST = 4096
"""The largest modulus: its table of p² pairs still fits the memory."""


@dataclass(frozen=True)
class ModularTable:
    """Which table, and which part of it is for training."""

    p: int
    op: str
    fraction: float
    split_seed: int = 0


def read_splits(text: str, arguments: Mapping[str, Any]) -> dict[str, ArraySplit]:
    """Splits "train" and "test" of one table: inputs (N, 2) int64, the pairs (a, b); labels a op b mod p, (N,).

    `text` is "p=59,op=add,fraction=0.3" and perhaps "seed=1"; what it leaves out is in `arguments`. The share
    `fraction` of all p² pairs, chosen by the seed, is for training (Power et al. 2022, arXiv 2201.02177).
    Raises UsageError for what is missing, unknown, said twice or out of its range.
    """
    table = _table(_merged(_renamed(_spelled(text)), _renamed(arguments)))
    a, b = np.divmod(np.arange(table.p**2), table.p)
    inputs, labels = np.stack([a, b], axis=1), OPERATIONS[table.op](a, b) % table.p
    wanted = round(table.fraction * table.p**2)
    if not 0 < wanted < table.p**2:
        raise UsageError(f"fraction = {table.fraction} of {table.p**2} pairs leaves no pair to train on, or to test")
    chosen = np.zeros(table.p**2, dtype=bool)
    chosen[np.random.default_rng(table.split_seed).permutation(table.p**2)[:wanted]] = True
    return {"train": ArraySplit(inputs[chosen], labels[chosen]), "test": ArraySplit(inputs[~chosen], labels[~chosen])}


def _spelled(text: str) -> dict[str, Any]:
    kinds = {"p": int, "op": str, "fraction": float, "seed": int}
    found: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if not equals or name not in kinds:
            raise UsageError(f"{part!r}: expected p=59,op=add,fraction=0.3 and optionally seed=1")
        if name in found:
            raise UsageError(f"{name} is given twice")
        try:
            found[name] = kinds[name](value)
        except ValueError as error:
            what = "whole number" if kinds[name] is int else "number"
            raise UsageError(f"{name}: expected a {what}, found {value!r}") from error
    return found


def _merged(spelled: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [name for name in given if name not in ModularTable.__dataclass_fields__]
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}; modular takes p, op, fraction and split_seed")
    twice = [name for name in given if name in spelled]
    if twice:
        raise UsageError(f"{twice[0]} is given twice, in the name and as an argument")
    return {**spelled, **given}


def _renamed(found: Mapping[str, Any]) -> dict[str, Any]:
    if {"seed", "split_seed"} <= found.keys():
        raise UsageError("seed and split_seed mean the same; give only one of them")
    return {"split_seed" if name == "seed" else name: value for name, value in found.items()}


def _table(found: Mapping[str, Any]) -> ModularTable:
    missing = [name for name in ("p", "op", "fraction") if name not in found]
    if missing:
        raise UsageError(f"{missing[0]} is missing; expected modular:p=59,op=add,fraction=0.3")
    table = ModularTable(**found)
    if type(table.p) is not int or not 2 <= table.p <= LARGEST:
        raise UsageError(f"p: expected a whole number from 2 to {LARGEST}, found {table.p!r}")
    if table.op not in OPERATIONS:
        raise UsageError(f"op: expected one of {', '.join(OPERATIONS)}, found {table.op!r}")
    if type(table.fraction) not in (int, float) or not 0 < table.fraction < 1:
        raise UsageError(f"fraction: expected a number between 0 and 1, found {table.fraction!r}")
    if type(table.split_seed) is not int or table.split_seed < 0:
        raise UsageError(f"split_seed: expected a whole number of at least 0, found {table.split_seed!r}")
    return table
