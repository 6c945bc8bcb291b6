"""What the figure claims, made a little false."""

from dataclasses import replace


def falsified(data):
    return [
        replace(data, predicted=1.01 * data.predicted),
        replace(data, idle_predicted=1.01 * data.idle_predicted),
        replace(data, idle_predicted=data.idle_predicted[:1] + 0 * data.idle_predicted),  # no recursion at all
        replace(data, predicted_angles=1.01 * data.predicted_angles),
        replace(data, deviation=data.deviation + 1e-11),
        replace(data, angles=data.angles + 1e-6),
    ]
