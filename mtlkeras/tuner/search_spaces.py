from mtlkeras import aggregators, balancers, strategies

# Learning rates of log variances, which move by about this much per batch.
LEARNED = (1e-4, 1e-1, "log")


def search_spaces(task_names):
    """The hyperparameters of every method that are worth a search.

    The one place where they stand. A range holds the default of the class,
    which is what the first trial of a search uses. What is missing here has
    nothing to tune, or only what has little effect.

    Args:
        task_names: Tuple of strings.

    Returns:
        Dict from class to a dict from argument to its space: `(min, max)`,
        which is searched as integers if both are, `(min, max, "log")`, a list
        of choices, or a dict of such spaces for an argument that is a dict.
    """
    num_tasks = len(task_names)
    return {
        # As many groups as tasks would be `alternating`.
        strategies.RandomGroups: (
            {"num_groups": (2, num_tasks - 1)} if num_tasks > 3 else {}
        ),
        strategies.AffinityGroups: {"preference": (0.2, 0.6)},
        aggregators.AlignedMTL: {"scale": ["min", "median", "rmse"]},
        aggregators.CAGrad: {"c": (0.1, 1.0)},
        aggregators.DBMTL: {"beta": (0.5, 0.99)},
        aggregators.FairGrad: {"alpha": (0.5, 5.0)},
        aggregators.GradDrop: {"leak": (0.0, 0.5)},
        aggregators.GradVac: {"beta": (0.1, 0.9)},
        aggregators.MGDA: {"normalization": [None, "l2"]},
        aggregators.MoCo: {"beta": (0.1, 1.0), "gamma": (0.01, 1.0, "log")},
        aggregators.TaskTensioner: {"alpha": (0.0, 1.0), "window": (5, 20)},
        balancers.FAMO: {
            "learning_rate": (1e-3, 1e-1, "log"),
            "decay": (1e-5, 1e-2, "log"),
        },
        balancers.GradNorm: {
            "alpha": (0.1, 3.0),
            "learning_rate": (1e-3, 1e-1, "log"),
        },
        balancers.IMTLL: {"learning_rate": LEARNED},
        balancers.RandomLossWeighting: {
            "distribution": ["normal", "dirichlet"]
        },
        balancers.SLAW: {"decay": (0.9, 0.999)},
        balancers.STCH: {"mu": (0.01, 10.0, "log")},
        balancers.TaskWeights: {
            "initial_weights": dict.fromkeys(task_names, (0.1, 10.0, "log"))
        },
        balancers.UncertaintyWeighting: {"learning_rate": LEARNED},
    }
