"""`speedrun`: 99 % of the test images in as little training time as two CPU cores allow. Our own network.

Choices, made on 5,000 held-out training images in a bare loop of the same parts, each a mean of 5 to 16 seeds:
- Three convolutions, the first two at stride 2; nothing is pooled. A first kernel at stride 3 takes half the time, and
  reaches 98.24 to 98.44 %.
- The first filters whiten patches of the training images and stay as they are: nothing is learned before the second
  convolution, so its backward pass, the longest, needs no gradient of its input. 1.0 s in place of 1.4, 98.68 % in
  place of 98.76; a cosine basis reaches 98.53.
- Widths 32 and 48: 98.68 % (32 and 32: 98.61 in 0.83 times the time; 32 and 64: 98.74 in 1.14; 48 and 48: 98.76 in
  1.4; one thread, in one run).
- AdamW with memories 0.7 and 0.9, lr 0.03, batch 256: 0.9 and 0.999 lose 0.2 points, SGD 0.3, Muon is slower and no
  better; batch 128 is no better, 512 loses 0.1.
- A classifier that is a convolution: Flatten and Linear would take a step from 5.3 to 6.3 ms, most of it for putting
  values into another order.
- Each test image is scored five times, as it is and shifted by one pixel each way: 0.15 points.

Measured on the test images, mean of 20 seeds: 99.14 ± 0.07 %, 95 % interval 99.11 to 99.17, in 1.38 s of training, by
    python -m mnist_accel verify recipe=speedrun seeds=20
The goal of 99.00 % at the interval's lower end is met; that of 1.2 s of training is missed there, and met in three
pairs of another hour, as that of 3.5 s from the return key: 1.19 (1.13 to 1.39) and 3.48 s (3.38 to 3.87), by
    python -m mnist_accel bench subject=time_to_99 pairs=3
That of 0.1 s on a GPU has not been measured.
"""

from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(
    name="speedrun",
    model="speedrun",
    epochs=1,
    batch_size=256,
    optimizer="adamw",
    lr=0.03,
    beta1=0.7,
    beta2=0.9,
    weight_decay=0.05,
    schedule="linear",
    warmup=0.2,
    label_smoothing=0.1,
    first_filters="whitening",
    test_shifts=1,
    dropout=0.0,
    claims=(Claim(metric="parameters", relation="=", value=23_338, note="416 of them fixed"),),
    measured=Measured(
        accuracy=99.14, seeds=20, spread=0.07, command="python -m mnist_accel verify recipe=speedrun seeds=20"
    ),
)
