"""Messages for wrong arguments of the layers in Keras's convention, of initializers, penalties and constraints."""

import numpy as np
import torch

import lc_triton
from lc_triton import errors as E
from lc_triton.keras import initializers
from tests.errors.checking import check_message, parametrize_errors


def keras2d(filters=4, kernel_size=3, *args, x=None, **kwargs):
    made = lc_triton.LocallyConnected2D(filters, kernel_size, *args, **kwargs)
    return made if x is None else made(torch.zeros(x))


CALLS = [
    (lambda: keras2d(0), E.ArgumentValueError, "filters must be an integer >= 1, got 0"),
    (lambda: keras2d(2.0), E.ArgumentTypeError, "filters must be an integer >= 1, got 2.0"),
    (lambda: keras2d(True), E.ArgumentTypeError, "filters must be an integer >= 1, got True of type bool"),
    (lambda: keras2d(4, (3, 3, 3)), E.LengthError, "kernel_size must be an int or 2 ints for 2 spatial dimension(s)"),
    (lambda: keras2d(4, 3.0), E.ArgumentTypeError, "kernel_size must be an integer >= 1, got 3.0 of type float"),
    (lambda: keras2d(strides=0), E.ArgumentValueError, "strides must be an integer >= 1, got 0"),
    (lambda: keras2d(dilation_rate=0), E.ArgumentValueError, "dilation_rate must be an integer >= 1, got 0"),
    (lambda: keras2d(groups=0), E.ArgumentValueError, "groups must be an integer >= 1, got 0"),
    (lambda: keras2d(groups=3), E.GroupsError, "filters must be divisible by groups, got filters=4 with groups=3"),
    (
        lambda: keras2d(groups=2, input_shape=(5, 5, 3)),
        E.GroupsError,
        "in_channels must be divisible by groups, got in_channels=3 with groups=2",
    ),
    (lambda: keras2d(padding="full"), E.UnknownNameError, "padding 'full' is not known; allowed: causal, keras_same"),
    (lambda: keras2d(padding="sam"), E.UnknownNameError, "padding 'sam' is not known (did you mean 'same'?)"),
    (lambda: keras2d(padding=1), E.ArgumentTypeError, "padding must be one of valid, same, keras_same, causal, got 1"),
    (lambda: keras2d(padding="causal"), E.PaddingError, "padding='causal' exists in 1-D only"),
    (lambda: keras2d(data_format="channels_fist"), E.UnknownNameError, "did you mean 'channels_first'?"),
    (
        lambda: keras2d(activation="sofmax"),
        E.UnknownNameError,
        "'sofmax' is not known (did you mean 'softmax'?)",
    ),
    (lambda: keras2d(activation="hardsigmoid"), E.UnknownNameError, "did you mean 'hard_sigmoid'?"),
    (lambda: keras2d(activation=1), E.ArgumentTypeError, "activation must be None, a name, a (name, constant) pair or"),
    (lambda: keras2d(use_bias=1), E.ArgumentTypeError, "use_bias must be True or False, got 1 of type int"),
    (
        lambda: keras2d(kernel_initializer="glorot"),
        E.UnknownNameError,
        "initializer 'glorot' is not known (did you mean 'glorot_normal'?)",
    ),
    (lambda: keras2d(bias_initializer="zeroes"), E.UnknownNameError, "did you mean 'zeros'?"),
    (
        lambda: keras2d(kernel_initializer={"class_name": "Constant", "config": {"val": 1}}),
        E.UnknownNameError,
        "initializer Constant argument 'val' is not known (did you mean 'value'?)",
    ),
    (
        lambda: keras2d(kernel_initializer={"class": "Constant"}),
        E.ArgumentValueError,
        'initializer must be a dict with "class_name" and "config" if it is a configuration',
    ),
    (
        lambda: keras2d(kernel_initializer=lc_triton.keras.initializers.Zeros),
        E.ArgumentTypeError,
        "initializer must be None, a name, a configuration or a callable object",
    ),
    (
        lambda: keras2d(kernel_initializer="identity", input_shape=(5, 5, 2)),
        E.ArgumentValueError,
        "another here: a window has 18 numbers, there are 4 filters, identity needs as many",
    ),
    (
        lambda: keras2d(kernel_initializer=lambda shape, dtype: torch.zeros(3), input_shape=(5, 5, 2)),
        E.ArgumentValueError,
        "shape of what the initializer returned must be (9, 18, 4), got (3,)",
    ),
    (
        lambda: keras2d(kernel_initializer=lambda shape, dtype: None, input_shape=(5, 5, 2)),
        E.ArgumentTypeError,
        "what the initializer returned must be an array or tensor of real numbers, got None",
    ),
    (
        lambda: lc_triton.keras.initializers.RandomNormal(stddev=-1.0),
        E.ArgumentValueError,
        "stddev must be a finite number >= 0, got -1.0",
    ),
    (lambda: lc_triton.keras.initializers.HeNormal(seed="a"), E.ArgumentTypeError, "seed must be an integer >= 0"),
    (
        lambda: lc_triton.keras.initializers.GlorotUniform(fan_mode="kers"),
        E.UnknownNameError,
        "fan_mode 'kers' is not known (did you mean 'keras'?)",
    ),
    (lambda: keras2d(kernel_regularizer="l3"), E.UnknownNameError, "regularizer 'l3' is not known (did you mean 'l"),
    (
        lambda: keras2d(activity_regularizer=0.1),
        E.ArgumentTypeError,
        "regularizer must be None, a name, a configuration",
    ),
    (
        lambda: lc_triton.keras.regularizers.L2(float("nan")),
        E.ArgumentValueError,
        "l2 must be a finite number >= 0, got nan",
    ),
    (
        lambda: lc_triton.keras.regularizers.OrthogonalRegularizer()(torch.ones(3)),
        E.ArgumentValueError,
        "regularizer must be another for weights of shape (3,): it compares the rows of matrices",
    ),
    (lambda: keras2d(bias_constraint="maxnorm"), E.UnknownNameError, "constraint 'maxnorm' is not known (did you mean"),
    (
        lambda: lc_triton.keras.constraints.MaxNorm(0),
        E.ArgumentValueError,
        "max_value must be a finite number > 0, got 0",
    ),
    (lambda: lc_triton.keras.constraints.UnitNorm(axis=1.0), E.ArgumentTypeError, "axis must be an integer"),
    (
        lambda: keras2d(
            kernel_constraint={"class_name": "UnitNorm", "config": {"axis": 3}}, input_shape=(5, 5, 2)
        ).constrain_(),
        E.ArgumentValueError,
        "axis must be an axis of a tensor of shape (9, 18, 4), got 3",
    ),
    (
        lambda: keras2d(
            kernel_constraint={"class_name": "UnitNorm", "config": {"axis": 1}},
            implementation=3,
            input_shape=(5, 5, 2),
        ).constrain_(),
        E.ArgumentValueError,
        "axis must be an axis of a tensor of shape (648,), got 1",
    ),
    (
        lambda: keras2d(kernel_constraint=lambda w: w.sum(), input_shape=(5, 5, 2)).constrain_(),
        E.ArgumentValueError,
        "what the constraint returned must be a tensor of shape (9, 18, 4)",
    ),
    (lambda: keras2d(implementation=4), E.ArgumentValueError, "implementation must be 1, 2 or 3"),
    (lambda: keras2d(dtype="float8"), E.ArgumentTypeError, "dtype must be a torch.dtype, or a name"),
    (lambda: keras2d(dtype=torch.int64), E.DtypeError, "dtype has dtype int64"),
    (lambda: keras2d(input_shape=(5, 5)), E.LengthError, "input_shape must be 3 sizes (spatial sizes and channels, wi"),
    (lambda: keras2d(input_shape=5), E.ArgumentTypeError, "input_shape must be a sequence of sizes, got 5"),
    (
        lambda: keras2d(input_shape=(5, None, 3)),
        E.ArgumentValueError,
        "input_shape must be known sizes: every output position has filters of its own, so only the batch may be None",
    ),
    (lambda: keras2d(input_shape=(2, 5, 3)), E.KernelTooLargeError, "wider than the padded input 2"),
    (
        lambda: keras2d().build((5, 5, 3)),
        E.LengthError,
        "input_shape must be 4 sizes (batch, spatial sizes",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 3)).build((None, 6, 5, 3)),
        E.ArgumentValueError,
        "input_shape must be (batch, 5, 5, 3), what this layer is built for: make a new layer for others, got (None, 6",
    ),
    (
        lambda: keras2d(x=(5, 5, 3)),
        E.RankError,
        "x must have 4 dimensions (batch, rows, cols, channels), got shape (5, 5, 3)",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 3), x=(1, 6, 5, 3)),
        E.SpatialSizeError,
        "x has spatial size (6, 5) but this layer's filters were made for (5, 5)",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 3), x=(1, 5, 5, 4)),
        E.ChannelError,
        "x.shape=(1, 5, 5, 4) was read as channels_last",
    ),
    (
        lambda: keras2d().count_params(),
        E.NotBuiltError,
        "LocallyConnected2D is not built: give input_shape=, call build",
    ),
    (lambda: keras2d().get_weights(), E.NotBuiltError, "LocallyConnected2D is not built"),
    (lambda: keras2d().set_weights([]), E.NotBuiltError, "LocallyConnected2D is not built"),
    (
        lambda: keras2d(input_shape=(5, 5, 2)).set_weights([np.zeros((9, 18, 4))]),
        E.ArgumentValueError,
        "weights must be a list of 2 array(s) of shape (9, 18, 4) and (3, 3, 4), got [(9, 18, 4)]",
    ),
    (
        lambda: keras2d(implementation=2, input_shape=(5, 5, 2)).set_weights(
            [np.zeros((9, 18, 4)), np.zeros((3, 3, 4))]
        ),
        E.ArgumentValueError,
        "weights must be a list of 2 array(s) of shape (5, 5, 2, 3, 3, 4) and (3, 3, 4), got [(9, 18, 4), (3, 3, 4)]",
    ),
    (
        lambda: keras2d(implementation=3, use_bias=False, input_shape=(5, 5, 2)).set_weights([np.zeros((9, 18, 4))]),
        E.ArgumentValueError,
        "weights must be a list of 1 array(s) of shape (648,), got [(9, 18, 4)]",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 2)).set_weights(np.zeros((9, 18, 4))),
        E.ArgumentTypeError,
        "weights must be a list of 2 array(s)",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 2)).set_weights(["a", "b"]),
        E.ArgumentTypeError,
        "weights must be an array or tensor of real numbers, got 'a'",
    ),
    (
        lambda: lc_triton.LocallyConnected2D.from_config({"filters": 4, "kernel_size": 3, "stride": 2}),
        E.UnknownNameError,
        "argument 'stride' is not known (did you mean 'strides'?)",
    ),
    (lambda: keras2d(data_format=""), E.UnknownNameError, "data_format '' is not known"),
    (
        lambda: keras2d(input_shape=b"\x05\x05\x02"),
        E.ArgumentTypeError,
        "input_shape must be a sequence of sizes, got b",
    ),
    (
        lambda: keras2d(kernel_regularizer=np.array(["l2", "l1"])),
        E.ArgumentTypeError,
        "regularizer must be None, a name, a c",
    ),
    (
        lambda: keras2d(kernel_initializer={"class_name": "Ones", "config": torch.ones(2)}),
        E.ArgumentValueError,
        'initializer must be a dict with "class_name" and "config" if it is a configuration',
    ),
    (
        lambda: keras2d(kernel_initializer={"class_name": "Ones", "config": {1: 1}}),
        E.UnknownNameError,
        "initializer Ones argument 1 is not known; allowed: none",
    ),
    (
        lambda: lc_triton.keras.initializers.Constant(10**30),
        E.ArgumentValueError,
        "value must be a finite number, got 1000000000000000000000000000000",
    ),
    (
        lambda: lc_triton.keras.constraints.UnitNorm(axis=[]),
        E.ArgumentValueError,
        "axis must be None, an axis or several, got []",
    ),
    (
        lambda: lc_triton.keras.constraints.UnitNorm(axis=(1, -1))(torch.ones(2, 2)),
        E.ArgumentValueError,
        "axis must be axes that are named once, got (1, -1)",
    ),
    (lambda: lc_triton.keras.activations.get(1), E.ArgumentTypeError, "activation must be None, a name, a (name, cons"),
    (lambda: lc_triton.regularization_loss(1), E.ArgumentTypeError, "model must be a torch.nn.Module, got 1"),
    (lambda: lc_triton.apply_constraints(None), E.ArgumentTypeError, "model must be a torch.nn.Module, got None"),
    (
        lambda: initializers.Orthogonal()((5,)),
        E.ArgumentValueError,
        "initializer must be used for a kernel: it makes matrices, got 'orthogonal'",
    ),
    (
        lambda: initializers.Identity()((5,)),
        E.ArgumentValueError,
        "initializer must be used for a kernel: it makes matrices, got 'identity'",
    ),
    (
        lambda: lc_triton.convert_weights(np.zeros((6, 40, 12)), "unfold", kernel_size=(2, 2, 2), output_size=(4, 3)),
        E.ArgumentValueError,
        "output_size must be one size, or 3, got (4, 3)",
    ),
    (
        lambda: lc_triton.attach_constraints(torch.nn.ReLU(), None),
        E.ArgumentTypeError,
        "optimizer must be a torch.optim.Optimizer, got None",
    ),
]


@parametrize_errors(CALLS)
def test_message(call, kind, message):
    check_message(call, kind, message)
