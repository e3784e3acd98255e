"""From the data of a method to the objects that `compile` and `fit` take."""

import inspect

import keras

import mtlkeras

FOLDERS = {
    "strategy": mtlkeras.strategies,
    "balancer": mtlkeras.balancers,
    "aggregator": mtlkeras.aggregators,
}


def compile_arguments(method, setting, task_names, seed):
    """The arguments of `compile` that belong to a method."""
    arguments = {
        name: make(
            FOLDERS[name],
            identifier,
            seed,
            {
                key.partition(".")[2]: value
                for key, value in setting.items()
                if key.startswith(f"{name}.")
            },
        )
        for name, identifier in method.get("compile", {}).items()
    }
    if "loss_weights" in setting:
        arguments["loss_weights"] = dict(
            zip(task_names, setting["loss_weights"], strict=True)
        )
    return arguments


def make_optimizer(method, default, setting):
    """A Keras optimizer with the learning rate and decay of a setting."""
    chosen = method.get("optimizer", default)
    config = dict(chosen.get("config", {}))
    cls = getattr(keras.optimizers, chosen["class_name"])
    if setting.get("weight_decay"):
        config["weight_decay"] = setting["weight_decay"]
    rate = setting["learning_rate"] * method.get("learning_rate_factor", 1.0)
    return cls(rate, **config)


def make_callbacks(method):
    return [
        make(mtlkeras.callbacks, identifier, None)
        for identifier in method.get("callbacks", [])
    ]


def make(folder, identifier, seed, arguments=None):
    """An object of one of the library's folders, with the seed of the run."""
    if isinstance(identifier, str):
        cls, config = type(folder.get(identifier)), {}
    else:
        cls = getattr(folder, identifier["class_name"])
        config = identifier.get("config", {})
    config = {**config, **(arguments or {})}
    if "seed" in inspect.signature(cls).parameters:
        config.setdefault("seed", seed)
    return cls(**config)
