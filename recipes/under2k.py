"""`under2k`: fewer than 2,000 parameters in forty epochs. Our own network; its goal was 99.15 %.

Choices, made on 5,000 held-out training images in a bare loop of the same parts, which is not kept; one seed each,
scored with shifts:
- Separable convolutions of 17 channels, tried for six epochs at lr 0.02 with memories 0.8 and 0.95: 99.00 %. With batch
  norm inside them, and so 16 channels (1,898 parameters), 98.80; then with 5×5 kernels in the first of four (1,878)
  98.82, in all of three (1,862) 98.28; a first one at the image's full size (1,938) 98.84. Four plain convolutions of 6
  to 8 channels (1,788; eight epochs, two seeds) 97.9.
- All forty epochs at lr 0.01 with memories 0.9 and 0.99, which the recipe has: 99.06. The network with batch norm
  inside, at the settings above, went from 98.80 after six to 99.12 after forty; at lr 0.04 without label smoothing from
  99.12 to 99.04. Three images are 0.06 points: nothing here tells these three apart.
- Half the augmentation of `under8k`, as a guess: no other was tried.
- Each test image is scored five times, as it is and shifted by one pixel each way: 0.2 to 0.4 points.

Measured on the test images, mean of 5 seeds: 99.24 ± 0.12 %, 95 % interval 99.09 to 99.39, by
    python -m mnist_accel verify recipe=under2k threads=1 seeds=5
Published: 99.10 % for 1,936 parameters, one run of 75 epochs.
"""

from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(
    name="under2k",
    model="under2k",
    epochs=40,
    batch_size=128,
    optimizer="adamw",
    lr=0.01,
    beta2=0.99,
    weight_decay=0.01,
    schedule="linear",
    label_smoothing=0.05,
    rotation=5,
    translation=0.05,
    scale=0.05,
    test_shifts=1,
    dropout=0.0,
    claims=(
        Claim(metric="parameters", relation="=", value=1_938),
        Claim(metric="parameters", relation="<", value=2_000, note="budget"),
    ),
    measured=Measured(
        accuracy=99.24, seeds=5, spread=0.12, command="python -m mnist_accel verify recipe=under2k threads=1 seeds=5"
    ),
)
