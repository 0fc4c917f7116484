"""`is3`: is this digit a three? One output, sigmoid, threshold one half.

Documented: two blocks of Conv 5×5, ReLU, MaxPool (16, 32 channels), Linear to 256, Linear to 1, with dropout; SGD lr
0.05, momentum 0.9, 50 epochs; 99.9 % (9,990 of 10,000) after them, average loss 3.96e-5.

Gaps and contradictions, and what this recipe does; choices made on 5,000 held-out training images:
- "Keep probability 0.2" read literally drops 80 %: behind the hidden layer that came to 99.78 % on the held-out images
  (20 %: 99.80), on the flattened features as well it collapsed to always answering "no". The recipe drops 20 %.
- Dropout stands on the flattened features and behind the hidden layer, ReLU follows the 256, no padding (so 144,833
  parameters; padding 2 would make 415,169), batch 64, binary cross-entropy.
- As documented and no more, the network soon knows its training images by heart and stays at 99.80 % (5,000 held out;
  on the test images 99.74 to 99.88 from one epoch to the next, lr being constant). The document names neither
  augmentation nor averaging and excludes neither; with 10,000 held out, last ten of 20 to 25 epochs: a weight average
  0.999 alone 99.84, with rotation ±5° and translation ±5 % 99.86, with ±10°, ±10 % and size ±10 % 99.87. The recipe
  takes the last; `ema=0 rotation=0 translation=0 scale=0` is the bare regime.
- Always answering "no" scores 89.9 %, so precision, recall and F1 of "yes" are reported as well.
- The loss of 3.96e-5 is not said to be of the training or the test images; it can only be the former.

Measured on the test images after epoch 50, mean of 3 seeds: 99.91 ± 0.01 %, F1 99.55 (99.51 to 99.60), by
    python -m mnist_accel verify recipe=is3 threads=1 seeds=3
Three seeds show no more than that 99.9 is not missed (p 0.11). The training loss of 3.96e-5 is not reached:
augmentation keeps it at 4.6e-3.
"""

from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(
    name="is3",
    model="is3",
    loss="binary",
    positive_class=3,
    epochs=50,
    batch_size=64,
    optimizer="sgd",
    lr=0.05,
    momentum=0.9,
    ema=0.999,
    dropout=0.2,
    rotation=10,
    translation=0.1,
    scale=0.1,
    claims=(
        Claim(metric="accuracy", relation=">=", value=99.9, epoch=50),
        Claim(metric="train_loss", relation="<=", value=3.96e-5, epoch=50, note="averaging not said"),
        Claim(metric="parameters", relation="=", value=144_833, note="our reading"),
    ),
    measured=Measured(
        accuracy=99.91, seeds=3, spread=0.01, command="python -m mnist_accel verify recipe=is3 threads=1 seeds=3"
    ),
)
