"""Locally connected layers in Keras's convention, with the names, order and meaning of Keras 2's arguments."""

from __future__ import annotations

from lc_triton.layers._locally_connected import LocallyConnectedNd

__all__ = ["LocallyConnected1D", "LocallyConnected2D", "LocallyConnected3D"]


class LocallyConnected1D(LocallyConnectedNd):
    """Keras 2's locally connected layer for sequences: Conv1D with filters of its own at every output position.

    Args:
        filters: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        strides: step between windows in sites.
        padding: "valid" (none), "same" (TensorFlow's SAME, any stride), "keras_same" (Keras 2's "same") or "causal".
        data_format: None or "channels_last", or "channels_first".
        activation: None, one of Keras's names with Keras 2's constants, a (name, constant) pair or a callable.
        use_bias: whether every position and filter has a bias.
        kernel_initializer: a name, a configuration or a callable `(shape, dtype)`. The fans are those of one position;
            `{"class_name": "GlorotUniform", "config": {"fan_mode": "keras"}}` has Keras's own.
        bias_initializer: as kernel_initializer.
        kernel_regularizer: None, a name, a configuration or a callable. `lc_triton.regularization_loss(model)` is the
            sum of all penalties; add it to the loss.
        bias_regularizer: as kernel_regularizer.
        activity_regularizer: as kernel_regularizer, of the output.
        kernel_constraint: None, a name, a configuration or a callable. `lc_triton.apply_constraints(model)` projects
            the weights once, `lc_triton.attach_constraints(model, optimizer)` after each step.
        bias_constraint: as kernel_constraint.
        implementation: 1, 2 or 3: the layout of the kernel in `get_weights` and `set_weights`, and so what an `axis` or
            `fan_mode="keras"` counts. All compute and store the same.
        dilation_rate: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        input_shape: the shape of one input, without the batch, to build at once; else the first call builds.
        batch_input_shape: the same with the batch before it, which may be None; no other size of a batch is refused.
        input_dim: the input's channels, to be compared with the first input; with input_length it builds at once.
        input_length: the input's steps, likewise.
        name: an attribute, and part of the configuration; None or a string.
        trainable: False freezes the parameters when they are made; an attribute that may be set later, too.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype or its name.

    Shapes:
        channels_last `(batch, steps, C)` to `(batch, new_steps, F)`;
        channels_first `(batch, C, steps)` to `(batch, F, new_steps)`.
        weight `(*new_spatial, *kernel_size, C // groups, F)`; bias `(*new_spatial, F)`; Keras's shapes through
        `get_weights` and `set_weights`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Keras 2, `keras.layers.LocallyConnected1D`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocallyConnected1D(64, 3, input_shape=(10, 32))
        >>> layer(torch.randn(8, 10, 32)).shape
        torch.Size([8, 8, 64])
    """

    ndim = 1


class LocallyConnected2D(LocallyConnectedNd):
    """Keras 2's locally connected layer for images: Conv2D with filters of its own at every output position.

    Args:
        filters: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        strides: step between windows in sites.
        padding: "valid" (none), "same" (TensorFlow's SAME, any stride) or "keras_same" (Keras 2's "same").
        data_format: None or "channels_last", or "channels_first".
        activation: None, one of Keras's names with Keras 2's constants, a (name, constant) pair or a callable.
        use_bias: whether every position and filter has a bias.
        kernel_initializer: a name, a configuration or a callable `(shape, dtype)`. The fans are those of one position;
            `{"class_name": "GlorotUniform", "config": {"fan_mode": "keras"}}` has Keras's own.
        bias_initializer: as kernel_initializer.
        kernel_regularizer: None, a name, a configuration or a callable. `lc_triton.regularization_loss(model)` is the
            sum of all penalties; add it to the loss.
        bias_regularizer: as kernel_regularizer.
        activity_regularizer: as kernel_regularizer, of the output.
        kernel_constraint: None, a name, a configuration or a callable. `lc_triton.apply_constraints(model)` projects
            the weights once, `lc_triton.attach_constraints(model, optimizer)` after each step.
        bias_constraint: as kernel_constraint.
        implementation: 1, 2 or 3: the layout of the kernel in `get_weights` and `set_weights`, and so what an `axis` or
            `fan_mode="keras"` counts. All compute and store the same.
        dilation_rate: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        input_shape: the shape of one input, without the batch, to build at once; else the first call builds.
        batch_input_shape: the same with the batch before it, which may be None; no other size of a batch is refused.
        input_dim: the input's channels, to be compared with the first input.
        input_length: None: only inputs of one spatial dimension have it.
        name: an attribute, and part of the configuration; None or a string.
        trainable: False freezes the parameters when they are made; an attribute that may be set later, too.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype or its name.

    Shapes:
        channels_last `(batch, rows, cols, C)` to `(batch, new_rows, new_cols, F)`;
        channels_first `(batch, C, rows, cols)` to `(batch, F, new_rows, new_cols)`.
        weight `(*new_spatial, *kernel_size, C // groups, F)`; bias `(*new_spatial, F)`; Keras's shapes through
        `get_weights` and `set_weights`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Keras 2, `keras.layers.LocallyConnected2D`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocallyConnected2D(64, (3, 3), activation="relu", input_shape=(32, 32, 3))
        >>> layer(torch.randn(8, 32, 32, 3)).shape
        torch.Size([8, 30, 30, 64])
    """

    ndim = 2


class LocallyConnected3D(LocallyConnectedNd):
    """The same layer for volumes: Conv3D with filters of its own at every output position.

    Args:
        filters: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        strides: step between windows in sites.
        padding: "valid" (none), "same" (TensorFlow's SAME, any stride) or "keras_same" (Keras 2's "same").
        data_format: None or "channels_last", or "channels_first".
        activation: None, one of Keras's names with Keras 2's constants, a (name, constant) pair or a callable.
        use_bias: whether every position and filter has a bias.
        kernel_initializer: a name, a configuration or a callable `(shape, dtype)`. The fans are those of one position;
            `{"class_name": "GlorotUniform", "config": {"fan_mode": "keras"}}` has Keras's own.
        bias_initializer: as kernel_initializer.
        kernel_regularizer: None, a name, a configuration or a callable. `lc_triton.regularization_loss(model)` is the
            sum of all penalties; add it to the loss.
        bias_regularizer: as kernel_regularizer.
        activity_regularizer: as kernel_regularizer, of the output.
        kernel_constraint: None, a name, a configuration or a callable. `lc_triton.apply_constraints(model)` projects
            the weights once, `lc_triton.attach_constraints(model, optimizer)` after each step.
        bias_constraint: as kernel_constraint.
        implementation: 1, 2 or 3: the layout of the kernel in `get_weights` and `set_weights`, and so what an `axis` or
            `fan_mode="keras"` counts. All compute and store the same.
        dilation_rate: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        input_shape: the shape of one input, without the batch, to build at once; else the first call builds.
        batch_input_shape: the same with the batch before it, which may be None; no other size of a batch is refused.
        input_dim: the input's channels, to be compared with the first input.
        input_length: None: only inputs of one spatial dimension have it.
        name: an attribute, and part of the configuration; None or a string.
        trainable: False freezes the parameters when they are made; an attribute that may be set later, too.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype or its name.

    Shapes:
        channels_last `(batch, depth, rows, cols, C)` to `(batch, new_depth, new_rows, new_cols, F)`;
        channels_first `(batch, C, depth, rows, cols)` to `(batch, F, ...)`.
        weight `(*new_spatial, *kernel_size, C // groups, F)`; bias `(*new_spatial, F)`; Keras's shapes through
        `get_weights` and `set_weights`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Keras 2, `keras.layers.LocallyConnected2D`, one dimension further.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocallyConnected3D(4, 2, input_shape=(4, 5, 6, 2))
        >>> layer(torch.randn(8, 4, 5, 6, 2)).shape
        torch.Size([8, 3, 4, 5, 4])
    """

    ndim = 3
