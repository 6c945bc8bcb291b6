"""outer_rate, a little false."""

from dataclasses import replace

import numpy as np

from figures.outer_rate import PAPER


def falsified(data) -> list:
    alphas, shares = np.array(data.spec.alphas), np.array(data.spec.shares)
    return [
        replace(data, original=1.6 * data.original),
        replace(data, original=np.nan * data.original),
        *(replace(data, compressed=data.compressed * np.where(alphas == alpha, 1.4, 1)) for alpha in PAPER),
        replace(data, compressed=data.compressed * np.where(alphas == alphas[-1], np.inf, 1)),  # the last never ends
        replace(data, compressed=data.compressed * np.where(alphas == 0.75, 1.6, 1)),  # slower than with alpha = 0.5
        replace(data, law=1.01 * data.law),
        replace(data, predicted=1.2 * data.predicted),
        replace(data, predicted=data.predicted[0] * (alphas / alphas[0]) ** -0.5),  # another power of alpha
        replace(data, original=1.5 * data.original, compressed=1.5 * data.compressed[:, :1] + 0 * data.compressed),
        replace(data, fast=np.where(shares > 0.8, np.inf, data.fast)),
        replace(data, fast=np.zeros_like(data.fast)),  # stable at every rate
        replace(data, limits=10 * data.limits),
        replace(data, limits=data.spec.rule + 0 * data.limits),  # the rule on the limit
        replace(data, ruled=np.full_like(data.ruled, np.inf)),
        replace(data, ruled=2.5 * data.ruled),
    ]
