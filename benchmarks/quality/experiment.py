"""An experiment: a config file, read and checked."""

import tomllib
from pathlib import Path

from benchmarks.quality.methods import METHODS

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"

REQUIRED = {"problem", "protocol", "about", "methods"}
OPTIONAL = {
    "tuned": {
        "arguments": {},
        "baselines": ["joint", "random_loss_weighting"],
        "reference": "single",
        "space": {},
        "trials": 4,
        "seeds": 6,
        "search_seed": 0,
        "table": {},
        "acceptance": {},
    },
    "sweep": {
        "arguments": {},
        "grid": {},
        "seeds": 1,
        "table": {},
        "acceptance": {},
    },
}


def read_experiment(path, smoke=False):
    """The dict of a config file, with defaults; `smoke` shrinks it.

    The table `[smoke]` of a file replaces what it names, one level deep.
    """
    path = Path(path)
    config = tomllib.loads(path.read_text())
    small = config.pop("smoke", {})
    if smoke:
        for key, value in small.items():
            if isinstance(value, dict):
                value = {**config.get(key, {}), **value}
            config[key] = value
    defaults = OPTIONAL.get(config.get("protocol"))
    if defaults is None:
        raise ValueError(
            f"`protocol` must be one of {sorted(OPTIONAL)}. Received: "
            f"{config.get('protocol')!r} in {path}"
        )
    known = REQUIRED | set(defaults)
    if set(config) - known or REQUIRED - set(config):
        raise ValueError(
            f"A config must hold {sorted(REQUIRED)} and may hold "
            f"{sorted(defaults)}. Received: {sorted(config)} in {path}"
        )
    if config["methods"] == "all":
        config["methods"] = [
            name
            for name, method in METHODS.items()
            if not method.get("only_named")
        ]
    unknown = set(config["methods"]) - set(METHODS)
    if unknown:
        raise ValueError(
            f"`methods` must be ids of methods.py. Received: {sorted(unknown)} "
            f"in {path}"
        )
    return {"name": path.stem, **defaults, **config}


def find_configs(names):
    """Paths of config files, from paths, names and folders (`cpu`, `gpu`)."""
    found = []
    for name in names:
        candidates = [Path(name), CONFIGS / name]
        candidates += sorted(CONFIGS.glob(f"*/{name}.toml"))
        path = next((c for c in candidates if c.exists()), None)
        if path is None:
            known = sorted(c.stem for c in CONFIGS.glob("*/*.toml"))
            raise ValueError(
                "CONFIG must be a file, a folder or one of the names "
                f"{known}. Received: {name!r}"
            )
        found += sorted(path.glob("*.toml")) if path.is_dir() else [path]
    return found
