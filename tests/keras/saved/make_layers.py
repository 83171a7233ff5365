"""Writes layers.zip: python -m tests.keras.saved.make_layers, where tf_keras is installed.

Models with an output for each of many small layers, with random weights. The archive has the files that tf_keras saves,
the inputs and outputs, the loss of a training step, and the weights after it.
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import constraints, regularizers
from tf_keras import layers as L

ARCHIVE = Path(__file__).with_name("layers.zip")
RATE = 0.05


def recurrent():
    """Recurrent layers with their default and with other activations, and bidirectional layers."""
    x = L.Input((6, 4), name="x")
    penalties = {
        "kernel_regularizer": "l2",
        "recurrent_regularizer": regularizers.L1(0.01),
        "bias_regularizer": "l2",
        "activity_regularizer": "l2",
        "kernel_constraint": constraints.MaxNorm(0.8),
        "recurrent_constraint": constraints.MaxNorm(0.7, axis=1),
        "bias_constraint": "non_neg",
    }
    sequences = L.LSTM(5, return_sequences=True, **penalties)(x)
    local = L.LocallyConnected1D(4, 2, name="local")(sequences)
    layers = [
        L.SimpleRNN(3),
        L.SimpleRNN(3, activation="relu", return_sequences=True, use_bias=False, dropout=0.2, **penalties),
        L.LSTM(3, activation="relu", recurrent_activation="hard_sigmoid", go_backwards=True, return_sequences=True),
        L.LSTM(2, use_bias=False, dropout=0.3, recurrent_dropout=0.2),
        L.LSTM(2, unroll=True, trainable=False),
        L.GRU(4),
        L.GRU(3, reset_after=False, return_sequences=True, **penalties),
        L.GRU(3, reset_after=False, activation="softsign", use_bias=False, implementation=1),
        L.GRU(3, activation="elu", recurrent_activation="hard_sigmoid", go_backwards=True, recurrent_dropout=0.1),
        L.GRU(2, return_sequences=True, go_backwards=True, **penalties),
        L.GRU(2, use_bias=False),
        L.RNN(L.LSTMCell(3)),
        L.RNN(L.GRUCell(2, activation="relu", reset_after=False), return_sequences=True, go_backwards=True),
        L.Bidirectional(L.LSTM(2, return_sequences=True, **penalties)),
        L.Bidirectional(L.GRU(3), merge_mode="sum"),
        L.Bidirectional(L.GRU(2, reset_after=False, return_sequences=True), merge_mode="ave"),
        L.Bidirectional(L.SimpleRNN(2, return_sequences=True), merge_mode="mul"),
        L.Bidirectional(
            L.LSTM(2, return_sequences=True),
            backward_layer=L.GRU(2, return_sequences=True, go_backwards=True, activation="relu"),
        ),
    ]
    return tf_keras.Model(x, [sequences, local, *(layer(x) for layer in layers)], name="recurrent")


def windows(data_format):
    """Layers with windows, in a data format."""
    first = data_format == "channels_first"

    def shape(*sizes, channels=4):
        return (channels, *sizes) if first else (*sizes, channels)

    line, image, volume = (L.Input(shape(*sizes), name=f"x{i}") for i, sizes in enumerate([(9,), (6, 5), (4, 3, 4)]))
    own = {"data_format": data_format}
    # TensorFlow has no such layers in float64.
    single = tf_keras.backend.floatx() == "float32"
    pools = (
        [
            L.MaxPooling3D(2, **own),
            L.MaxPooling3D((2, 3, 2), strides=1, padding="same", **own),
            L.AveragePooling3D((3, 2, 2), padding="same", **own),
        ]
        if single
        else []
    )
    layers = [
        (
            line,
            [
                L.Conv1DTranspose(3, 3, **own),
                L.Conv1DTranspose(2, 4, strides=3, padding="same", activation="tanh", use_bias=False, **own),
                L.Conv1DTranspose(2, 2, strides=3, **own),
                L.Conv1DTranspose(2, 3, strides=2, padding="same", output_padding=0, **own),
                *([L.Conv1DTranspose(2, 3, dilation_rate=2, **own)] if single else []),
                L.SeparableConv1D(5, 3, padding="same", depth_multiplier=2, activation="relu", **own),
                L.SpatialDropout1D(0.4),
                L.GlobalMaxPooling1D(**own),
            ],
        ),
        (
            image,
            [
                L.Conv2DTranspose(
                    3, 3, strides=2, padding="same", **own, kernel_regularizer="l2", bias_constraint="non_neg"
                ),
                L.Conv2DTranspose(2, (2, 3), strides=(3, 2), padding="valid", activation="relu", **own),
                L.Conv2DTranspose(2, (4, 5), strides=(2, 3), padding="same", output_padding=(1, 2), **own),
                L.Conv2DTranspose(2, (3, 2), strides=(2, 2), output_padding=(1, 0), use_bias=False, **own),
                L.Conv2DTranspose(2, 3, padding="same", dilation_rate=2, **own),
                L.SeparableConv2D(
                    3,
                    (3, 2),
                    strides=2,
                    padding="same",
                    depth_multiplier=3,
                    depthwise_regularizer="l2",
                    pointwise_regularizer="l1",
                    depthwise_constraint=constraints.MaxNorm(0.5),
                    pointwise_constraint="non_neg",
                    activity_regularizer="l1",
                    **own,
                ),
                L.SeparableConv2D(3, 2, dilation_rate=2, use_bias=False, **own),
                L.UpSampling2D((2, 3), **own),
                L.UpSampling2D((2, 3), interpolation="bilinear", **own),
                L.Cropping2D(((1, 2), (0, 3)), **own),
                L.Cropping2D((1, 2), **own),
                L.GroupNormalization(2, axis=1 if first else -1, epsilon=1e-4),
            ],
        ),
        (
            volume,
            [
                L.Conv3D(3, (2, 3, 2), activation="relu", **own),
                L.Conv3D(2, 3, strides=(2, 1, 3), padding="same", use_bias=False, kernel_constraint="unit_norm", **own),
                L.Conv3D(2, 2, dilation_rate=2, **own),
                L.Conv3DTranspose(2, 3, strides=2, padding="same", **own),
                L.Conv3DTranspose(2, (2, 3, 1), strides=(1, 2, 2), output_padding=(0, 1, 1), **own),
                *pools,
                L.GlobalMaxPooling3D(**own),
                L.GlobalAveragePooling3D(keepdims=True, **own),
                L.UpSampling3D((2, 1, 3), **own),
                L.ZeroPadding3D(((1, 0), (0, 2), (1, 1)), **own),
                L.Cropping3D(((1, 0), (0, 2), (1, 1)), **own),
                L.SpatialDropout3D(0.4, **own),
                L.Flatten(**own),
            ],
        ),
    ]
    outputs = [layer(x) for x, of_input in layers for layer in of_input]
    return tf_keras.Model([line, image, volume], outputs, name=f"windows_{data_format}")


def scaled():
    """Layers that scale, normalize, repeat, merge, resize and drop."""
    words, image, line = L.Input((5,), name="x0"), L.Input((5, 6, 3), name="x1"), L.Input((5, 4), name="x2")
    other = L.Input((3, 4), name="x3")
    vector = L.Input((4,), name="x4")
    table = L.Embedding(
        11, 4, embeddings_regularizer="l2", embeddings_constraint="unit_norm", activity_regularizer="l1"
    )(words)
    adapted, inverse = L.Normalization(), L.Normalization(axis=(1, 3), invert=True)
    random_images = []
    if tf_keras.backend.floatx() == "float32":  # TensorFlow has these layers only in float32
        random_images = [L.RandomRotation(0.2), L.RandomTranslation(0.1, 0.2), L.RandomZoom(0.1), L.RandomContrast(0.3)]
    layers = [
        L.Rescaling(1 / 255, offset=-1.0),
        L.Rescaling([0.5, 2.0, 1.5], offset=[0.0, 1.0, -1.0]),
        adapted,
        inverse,
        L.Normalization(mean=[0.1, 0.2, 0.3], variance=2.0),
        L.Normalization(axis=None, mean=0.5, variance=3.0, invert=True),
        L.GroupNormalization(
            3, gamma_regularizer="l2", gamma_constraint=constraints.MaxNorm(0.9), beta_regularizer="l1"
        ),
        L.GroupNormalization(1, scale=False, epsilon=0.1),
        L.GroupNormalization(-1, axis=2, center=False),
        L.UnitNormalization(),
        L.UnitNormalization(axis=[1, 2]),
        L.Softmax(axis=[1, 3]),
        L.BatchNormalization(scale=False),
        L.BatchNormalization(axis=1, epsilon=1e-2),
        L.BatchNormalization(renorm=True),
        L.RandomFlip("horizontal"),
        L.RandomBrightness(0.3),
        *random_images,
        L.RandomCrop(4, 3),
        L.CenterCrop(3, 4),
        L.CenterCrop(7, 4),
        L.Resizing(4, 9),
        L.Resizing(3, 8, interpolation="nearest"),
        L.Resizing(4, 3, crop_to_aspect_ratio=True),
        L.Identity(),
        L.GaussianNoise(0.3),
        L.GaussianDropout(0.3),
        L.AlphaDropout(0.3),
        L.SpatialDropout2D(0.3),
        L.Dropout(0.4, noise_shape=(None, 1, 6, 1)),
        L.ActivityRegularization(l1=0.1, l2=0.2),
        L.LocallyConnected2D(2, 3, activation=L.LeakyReLU(0.3)),
        L.LocallyConnected2D(2, 3, activation=L.ReLU(max_value=1.0, negative_slope=0.1)),
        L.LocallyConnected2D(2, 3, activation=L.Softmax(axis=[1, 2])),
        L.Conv2D(2, 3, activation=L.ELU(0.5)),
        L.Conv2D(2, 3, activation="gelu"),
        L.LocallyConnected2D(2, 3, activation="gelu"),
        L.Activation(L.ThresholdedReLU(0.2)),
    ]
    gradual = [layer(image) for layer in layers]
    merged = [
        L.Subtract()([line, table]),
        L.Average()([line, table, line]),
        L.Minimum()([line, table]),
        L.Add()([line, vector]),
        L.Dot(axes=2)([line, other]),
        L.Dot(axes=(1, 2), normalize=True)([vector, other]),
        L.Dot(axes=1)([vector, vector]),
        L.RepeatVector(3)(vector),
        L.Cropping1D((1, 2))(line),
        L.Cropping1D(1)(line),
        L.UpSampling1D(3)(line),
        L.SeparableConv1D(3, 3, strides=2, padding="causal")(line),
    ]
    model = tf_keras.Model([words, image, line, other, vector], [table, *gradual, *merged], name="scaled")
    random = np.random.default_rng(5)
    for layer in (adapted, inverse):
        layer.adapt(random.normal(1, 2, (20, 5, 6, 3)))
    return model


def attending():
    """Attention, masks, states passed between layers, and activations with weights."""
    line, other, words = L.Input((6, 4), name="x0"), L.Input((5, 3), name="x1"), L.Input((6,), name="x2")
    image = L.Input((4, 3, 5), name="x3")
    penalties = {
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        "activity_regularizer": "l2",
        "kernel_constraint": constraints.MaxNorm(0.5),
    }
    same = L.Dense(4)(other)
    whole, h, c = L.LSTM(3, return_sequences=True, return_state=True)(line)
    both = L.Bidirectional(L.GRU(3, return_state=True))(line)
    table = L.Embedding(11, 4, mask_zero=True)(words)
    masked = L.Masking(0.0)(line)
    outputs = [
        L.MultiHeadAttention(2, 3, **penalties)(line, line),
        L.MultiHeadAttention(3, 2, value_dim=4, output_shape=5, use_bias=False)(line, other),
        L.MultiHeadAttention(2, 3, dropout=0.1)(line, other, key=same, use_causal_mask=True),
        *L.MultiHeadAttention(2, 3, attention_axes=(1,))(image, image, return_attention_scores=True)[:1],
        L.MultiHeadAttention(2, 3)(image, image),
        L.Attention()([line, same]),
        L.Attention(use_scale=True, score_mode="concat", dropout=0.2)([line, same, same], use_causal_mask=True),
        L.AdditiveAttention()([line, same]),
        L.AdditiveAttention(use_scale=False)([line, same]),
        L.Attention()([table, masked]),
        whole,
        h,
        L.LSTM(3)(other, initial_state=[h, c]),
        L.GRU(3, reset_after=False, return_sequences=True)(other, initial_state=c),
        both[0],
        L.Bidirectional(L.GRU(3), merge_mode="ave")(other, initial_state=both[1:]),
        L.MultiHeadAttention(2, 3)(table, masked, key=table),
        L.GlobalAveragePooling1D()(L.Add()([table, masked])),
        L.LSTM(2)(L.Concatenate()([table, masked])),
        L.LSTM(3)(table),
        L.GRU(3, return_sequences=True)(table),
        L.Bidirectional(L.LSTM(2, return_sequences=True))(table),
        L.Bidirectional(L.GRU(2, reset_after=False), merge_mode="mul")(masked),
        L.GRU(2, go_backwards=True, return_sequences=True)(masked),
        L.SimpleRNN(2)(L.LSTM(3, return_sequences=True)(masked)),
        L.LocallyConnected1D(3, 2, activation=L.PReLU(alpha_regularizer="l2"), kernel_regularizer="l2")(line),
        L.Conv1D(3, 2, activation=L.PReLU(shared_axes=[1], alpha_constraint="non_neg"), kernel_constraint="max_norm")(
            line
        ),
        L.Dense(3, activation=L.PReLU())(line),
    ]
    return tf_keras.Model([line, other, words, image], outputs, name="attending")


def inputs_of(model, random):
    """A batch of random inputs; those of embeddings are whole numbers, and some steps of `attending` are zero."""
    found = [random.normal(0, 1, (2, *x.shape[1:])).astype(x.dtype.as_numpy_dtype) for x in model.inputs]
    words = {"scaled": 0, "attending": 2}.get(model.name)
    if words is not None:
        found[words] = random.integers(0, 11, found[words].shape).astype(found[words].dtype)
    if model.name == "attending":
        found[0][0, :2], found[0][1, 3], found[0][1, 5:] = 0, 0, 0
        found[2][0, 4:], found[2][1, 0], found[2][1, 4] = 0, 0, 0
    return found


def shaken(model, random):
    """Random weights: with zeros and ones, tests would not find swapped weights."""
    for layer in model.layers:
        if isinstance(layer, L.Normalization):
            continue
        values = [w + random.normal(0, 0.2, w.shape).astype(w.dtype) for w in layer.get_weights()]
        layer.set_weights(
            [
                abs(v) if "variance" in w.name or "stddev" in w.name else v
                for v, w in zip(values, layer.weights, strict=True)
            ]
        )


def listed(value):
    return value if isinstance(value, (list, tuple)) else [value]


def step(model, inputs):
    """Train a model for one step, and return its loss with all penalties."""
    with tf.GradientTape() as tape:
        outputs = listed(model(inputs if len(inputs) > 1 else inputs[0], training=False))
        floatx = tf_keras.backend.floatx()  # an interpolated image is float32 in every model
        loss = tf.add_n([tf.reduce_mean(tf.square(tf.cast(y, floatx))) for y in outputs])
        loss = loss + (tf.cast(tf.add_n(model.losses), loss.dtype) if model.losses else 0)
    gradients = tape.gradient(loss, model.trainable_variables)
    tf_keras.optimizers.SGD(RATE).apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss.numpy()


def write(make, seed, folder, dtype):
    """Write the files of a model, and return its outputs, its loss and its weights after a step."""
    random = np.random.default_rng(seed)
    tf_keras.utils.set_random_seed(seed)
    tf_keras.backend.set_floatx(dtype)
    model = make()
    shaken(model, random)
    name = model.name if dtype == "float32" else f"{model.name}_{dtype}"
    before, inputs = model.get_weights(), inputs_of(model, random)
    save(model, folder, name)
    outputs = listed(model(inputs if len(inputs) > 1 else inputs[0], training=False))
    arrays = {f"{name}/x{i}": np.asarray(x) for i, x in enumerate(inputs)}
    arrays |= {f"{name}/y{i}": np.asarray(y) for i, y in enumerate(outputs)}
    arrays[f"{name}/loss"] = step(model, inputs)
    model.save_weights(folder / f"{name}.after.weights.h5")
    if "channels_last" in name:  # on a CPU, TensorFlow can build the channels_first model, but not compute it
        twin = windows("channels_first")
        twin.set_weights(before)
        save(twin, folder, name.replace("channels_last", "channels_first"))
    return arrays


def save(model, folder, name):
    model.save(folder / f"{name}.h5", include_optimizer=False)
    if "float64" not in name:
        model.save_weights(folder / f"{name}.weights.h5")
    (folder / f"{name}.json").write_text(model.to_json())


MODELS = (recurrent, lambda: windows("channels_last"), scaled, attending)


def main():
    """Write all models into one archive."""
    arrays = {}
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, True, 9) as archive:
        folder = Path(name)
        for seed, make in enumerate(MODELS):
            for dtype in ("float32", "float64"):
                arrays |= write(make, seed, folder, dtype)
        np.savez_compressed(folder / "outputs.npz", **arrays)
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)


if __name__ == "__main__":
    main()
