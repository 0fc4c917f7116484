"""`is3`: is this digit a three? One output, sigmoid, threshold one half.

Documented: two blocks of Conv 5×5, ReLU, MaxPool (16, 32 channels), Linear to 256, Linear to 1, with dropout; SGD lr
0.05, momentum 0.9, 50 epochs; 99.9 % (9,990 of 10,000) after them, average loss 3.96e-5.

Gaps and contradictions, and what this recipe does; choices made on 5,000 held-out training images:
- "Keep probability 0.2" read literally drops 80 %. Both readings came to the same on the held-out images when placed
  behind the hidden layer (99.78 and 99.80 % after 50 epochs); the recipe drops 20 %, the usual meaning of the number.
- Dropout stands on the flattened features and behind the hidden layer: 99.82 % as a mean of the last ten epochs at
  batch 64, 99.80 at batch 128. Batch 64, ReLU after the 256, no padding (so 144,833 parameters; padding 2 would make
  415,169), binary cross-entropy.
- Always answering "no" scores 89.9 %, so precision, recall and F1 of "yes" are reported as well.
- The loss of 3.96e-5 is not said to be of the training or the test images; it can only be the former.
"""

from mnist_accel.recipe import Claim, Recipe

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
    dropout=0.2,
    claims=(
        Claim(metric="accuracy", relation=">=", value=99.9, epoch=50),
        Claim(metric="train_loss", relation="<=", value=3.96e-5, epoch=50, note="averaging not said"),
        Claim(metric="parameters", relation="=", value=144_833, note="our reading"),
    ),
)
