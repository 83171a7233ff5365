"""Writes the models of this folder: python -m tests.keras.saved.make, where tf_keras is installed.

Each model is small and has random weights. An .npz file has a random input x and the output y of tf_keras. Arguments
are the names of the models to write, if not all. For "penalised", there are also the loss and the weights after a
training step.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import constraints, regularizers
from tf_keras import layers as L

from lc_triton.keras.activations import ACTIVATIONS

HERE = Path(__file__).parent


def local(implementation, data_format, padding="valid"):
    """Both locally connected layers, in one layout of their kernels."""
    kind = {"implementation": implementation, "data_format": data_format, "padding": padding}
    first = data_format == "channels_first"
    return tf_keras.Sequential(
        [
            L.Input((2, 6, 5) if first else (6, 5, 2)),
            L.LocallyConnected2D(3, (3, 2), strides=(1, 2), activation="relu", name="image", **kind),
            L.Reshape((3, -1) if first else (-1, 3)),
            L.LocallyConnected1D(4, 3, strides=2, name="sequence", **kind),
            L.Flatten(data_format=data_format),
            L.Dense(3, activation="softmax", name="classes"),
        ],
        name=f"local_{implementation}_{data_format}",
    )


def every_layer():
    """A graph with two inputs and two outputs, a layer that is called twice, and every kind of image layer."""
    image, other = L.Input((9, 8, 3), name="image"), L.Input((9, 8, 3), name="other")
    shared = L.Conv2D(4, 3, padding="same", activation="relu", name="shared", kernel_regularizer=regularizers.L2(1e-3))
    a, b = shared(image), shared(other)
    a = L.BatchNormalization(name="norm")(a)
    b = L.LayerNormalization(axis=[1, -1], name="layer_norm")(b)
    both = L.Concatenate(name="both")([a, b, L.Add()([a, b]), L.Multiply()([a, b]), L.Maximum()([a, b])])
    x = L.DepthwiseConv2D((3, 2), strides=2, padding="same", depth_multiplier=2, name="depthwise")(both)
    x = L.LeakyReLU(0.1)(x)
    x = L.ZeroPadding2D(((1, 0), (2, 1)))(x)
    x = L.Conv2D(8, (3, 2), dilation_rate=2, groups=4, activation="swish", name="grouped")(x)
    x = L.MaxPooling2D(2, padding="same")(x)
    x = L.PReLU(shared_axes=[1], name="prelu")(x)
    x = L.SpatialDropout2D(0.5)(x)
    y = L.AveragePooling2D((3, 2), strides=(2, 1), padding="same")(both)
    y = L.LocallyConnected2D(3, 2, activation="tanh", name="local.layer")(y)
    y = L.Permute((2, 1, 3))(y)
    y = L.ReLU(max_value=0.8, negative_slope=0.1, threshold=0.2)(y)
    y = L.GlobalAveragePooling2D(keepdims=True)(y)
    y = L.Flatten()(y)
    x = L.Dense(3, use_bias=False, name="train")(L.Flatten()(x))
    x = L.Dropout(0.5)(L.ELU(0.7)(x))
    z = L.Softmax()(L.Add()([x, y]))
    w = L.Activation("softplus", name="second")(L.GlobalMaxPooling2D()(both))
    return tf_keras.Model([image, other], [z, w], name="every_layer")


def sequence():
    """Every kind of layer for sequences."""
    return tf_keras.Sequential(
        [
            L.ZeroPadding1D((1, 2), input_shape=(17, 3)),
            L.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="gelu"),
            L.BatchNormalization(scale=False),
            L.Conv1D(6, 4, strides=2, padding="same", groups=2),
            L.SpatialDropout1D(0.2),
            L.LocallyConnected1D(5, 3, activation="elu", use_bias=False),
            L.ThresholdedReLU(0.05),
            L.MaxPooling1D(2, padding="same"),
            L.AveragePooling1D(3, strides=1, padding="same"),
            L.LayerNormalization(center=False),
            L.Conv1D(7, 1, activation="softmax"),
            L.GlobalAveragePooling1D(),
            L.Dense(4, activation="hard_sigmoid"),
        ],
        name="sequence",
    )


def activations():
    """A locally connected and a dense layer for each activation."""
    x = L.Input((5, 2))
    outputs = [
        layer
        for name in ACTIVATIONS
        for layer in (L.LocallyConnected1D(3, 2, activation=name)(x), L.Dense(3, activation=name)(x))
    ]
    return tf_keras.Model(x, outputs, name="activations")


def of_dtype(dtype):
    """A model with weights of another dtype, and a frozen layer."""
    tf_keras.backend.set_floatx(dtype)
    model = tf_keras.Sequential(
        [
            L.LocallyConnected2D(3, 2, activation="relu", input_shape=(5, 4, 2), name="local", trainable=False),
            L.BatchNormalization(trainable=False),
            L.Flatten(),
            L.Dense(2),
        ],
        name=dtype,
    )
    tf_keras.backend.set_floatx("float32")
    return model


def deepface():
    """A small network like DeepFace: convolutions, then three locally connected layers."""
    return tf_keras.Sequential(
        [
            L.Conv2D(4, 11, activation="relu", name="C1", input_shape=(52, 52, 3)),
            L.MaxPooling2D(3, strides=2, padding="same", name="M2"),
            L.Conv2D(4, 9, activation="relu", name="C3"),
            L.LocallyConnected2D(4, 5, activation="relu", name="L4"),
            L.LocallyConnected2D(4, 3, strides=2, activation="relu", name="L5"),
            L.LocallyConnected2D(4, 3, activation="relu", name="L6"),
            L.Flatten(name="F0"),
            L.Dense(16, activation="relu", name="F7"),
            L.Dropout(0.5, name="D0"),
            L.Dense(8, activation="softmax", name="F8"),
        ],
        name="deepface",
    )


def penalised():
    """Regularizers and constraints of every kind, on every kind of layer that has them."""
    frozen = {"kernel_regularizer": "l2", "kernel_constraint": "non_neg", "trainable": False}
    return tf_keras.Sequential(
        [
            L.Conv2D(
                4,
                3,
                kernel_regularizer="l1_l2",
                kernel_constraint=constraints.MaxNorm(0.8, axis=[0, 1, 2]),
                bias_regularizer=regularizers.L1(0.1),
                bias_constraint="non_neg",
                activity_regularizer=regularizers.L2(0.02),
                activation="tanh",
                input_shape=(9, 8, 3),
            ),
            L.DepthwiseConv2D(
                2,
                depth_multiplier=2,
                depthwise_regularizer="l2",
                depthwise_constraint=constraints.UnitNorm(axis=[0, 1]),
                activity_regularizer="l1",
            ),
            L.BatchNormalization(
                gamma_regularizer="l2",
                gamma_constraint=constraints.MaxNorm(1.5),
                beta_regularizer="l1",
                beta_constraint="non_neg",
            ),
            L.PReLU(alpha_regularizer="l1", alpha_constraint="non_neg"),
            L.LocallyConnected2D(
                3,
                2,
                kernel_regularizer="l2",
                kernel_constraint=constraints.MinMaxNorm(0.5, 1, 0.7, axis=1),
                bias_constraint="max_norm",
                activity_regularizer="l2",
            ),
            L.Conv2D(4, 2, **frozen),
            L.LocallyConnected2D(3, 2, **frozen),
            L.Reshape((-1, 3)),
            L.DepthwiseConv1D(2, depthwise_regularizer="l1", depthwise_constraint="max_norm"),
            L.Conv1D(4, 2, kernel_regularizer="l2", kernel_constraint="unit_norm"),
            L.LayerNormalization(gamma_regularizer="l1", beta_regularizer="l2", beta_constraint="unit_norm"),
            L.Flatten(),
            L.Dense(
                5,
                kernel_regularizer=regularizers.OrthogonalRegularizer(0.1, "columns"),
                kernel_constraint="min_max_norm",
                bias_regularizer="l2",
                activity_regularizer=regularizers.L1(0.05),
            ),
        ],
        name="penalised",
    )


def trained_once(model, inputs):
    """Train a model for one step, and return its loss with all penalties."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(inputs, training=False))) + tf.add_n(model.losses)
    gradients = tape.gradient(loss, model.trainable_variables)
    tf_keras.optimizers.SGD(0.05).apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss.numpy()


MODELS = {
    **{
        f"local_{i}_{f}": (lambda i=i, f=f: local(i, f, "valid" if i == 1 else "same"))
        for i in (1, 2, 3)
        for f in ("channels_last", "channels_first")
    },
    "every_layer": every_layer,
    "sequence": sequence,
    "activations": activations,
    "float16": lambda: of_dtype("float16"),
    "float64": lambda: of_dtype("float64"),
    "deepface": deepface,
    "penalised": penalised,
}


def main(names):
    """Write models, and the outputs of tf_keras for a random batch."""
    about = {"tf_keras": tf_keras.__version__, "tensorflow": tf.__version__}
    archive = HERE / "outputs.npz"
    arrays = dict(np.load(archive)) if names else {}
    for seed, (name, make) in enumerate(MODELS.items()):
        if names and name not in names:
            continue
        random = np.random.default_rng(seed)
        tf_keras.utils.set_random_seed(seed)
        model = make()
        for layer in model.layers:  # with zero biases and unit scales, tests would not find swapped weights
            values = [w + random.normal(0, 0.1, w.shape).astype(w.dtype) for w in layer.get_weights()]
            layer.set_weights(
                [abs(v) if "variance" in w.name else v for v, w in zip(values, layer.weights, strict=True)]
            )
        inputs = [random.normal(0, 1, (3, *x.shape[1:])).astype(x.dtype.as_numpy_dtype) for x in model.inputs]
        outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
        for letter, values in (("x", inputs), ("y", outputs if isinstance(outputs, (list, tuple)) else [outputs])):
            for i, value in enumerate(values):
                arrays[f"{name}/{letter}{i}"] = np.asarray(value)
        model.save(HERE / f"{name}.h5", include_optimizer=False)
        model.save(HERE / f"{name}.keras")
        model.save_weights(HERE / f"{name}.weights.h5")
        (HERE / f"{name}.json").write_text(model.to_json())
        if name == "penalised":
            arrays[f"{name}/loss"] = trained_once(model, inputs[0])
            model.save_weights(HERE / f"{name}.after.weights.h5")
    np.savez_compressed(archive, **arrays)
    (HERE / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
