"""depth_and_width, a little false."""

from dataclasses import replace


def falsified(data) -> list:
    (deep, flat), (blocks, others) = ((values[3], values[2]) for values in (data.errors, data.blocks))
    return [
        replace(data, errors={3: 1000 * deep, 2: flat}),
        replace(data, errors={3: 1e-4 + deep, 2: flat}),
        replace(data, errors={3: flat, 2: deep}),  # depths exchanged
        replace(data, errors={3: deep, 2: 100 * flat}),
        replace(data, errors={3: deep, 2: 0.01 * flat}),
        replace(data, errors={3: deep, 2: flat[::-1]}),  # narrow worse than wide
        replace(data, errors={3: deep, 2: flat[:1] + 0 * flat}),  # width is no matter
        replace(data, errors={3: deep + 0.1 * flat[-1], 2: flat}),
        replace(data, blocks={3: blocks[-1:] + 0 * blocks, 2: others}),
        replace(data, blocks={3: 0.3 * blocks, 2: others}),
        replace(data, blocks={3: 3 * blocks, 2: others}),
        replace(data, same_step=0.1 * data.same_step),
        replace(data, same_step=2 * data.same_step),
    ]
