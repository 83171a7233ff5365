"""Positional arguments in the order of Keras 2, and a check of the configuration that layers make of them."""

ARGUMENTS = (
    4, 3, 2, "SAME", "channels_first", "tanh", False, "ones", "ones", "l1", "l2", "l1_l2", "non_neg", "unit_norm", 3,
)  # fmt: skip

NAMES = (
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


def check_configuration(config):
    """Check the configuration of a layer made with ARGUMENTS, without the strides."""
    assert (config["padding"], config["data_format"], config["activation"]) == ("same", "channels_first", "tanh")
    assert [config[n]["class_name"] for n in NAMES] == ["Ones", "Ones", "L1", "L2", "L1L2", "NonNeg", "UnitNorm"]
    assert (config["use_bias"], config["implementation"], config.get("groups", 1)) == (False, 3, 1)
