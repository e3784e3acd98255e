"""The methods that are compared, as data.

A method is a dict, all of it plain JSON, of which each key may be missing:

- `compile`: arguments of `MultiTaskModel.compile`; an object is the id of its
  class, or `{"class_name": ..., "config": {...}}`.
- `optimizer`: `{"class_name": ..., "config": {...}}` in place of the optimizer
  of the problem.
- `learning_rate_factor`: what the learning rates of the search are multiplied
  by, for an optimizer that needs others.
- `search`: what the random search draws in addition, by the name of a setting
  or as `"aggregator.c"` for an argument of an object.
- `fixed`: settings that are not searched.
- `callbacks`: list of callbacks, as objects.
- `roaming`: arguments of `MultiTaskModel.with_roaming`.
- `separate`: one network per task, each tuned by itself.
- `only_named`: not part of `methods = "all"`.

Objects with an argument `seed` get the seed of the run.
"""

METHODS = {
    # Baselines. `joint` is the plain sum of the losses.
    "single": {"separate": True},
    "joint": {},
    "fixed_weights": {"search": {"loss_weights": {"simplex": 1.0}}},
    # Optimizers under the plain sum.
    "joint_unregularized": {"fixed": {"weight_decay": 0.0, "dropout": 0.0}},
    "joint_sgd_momentum": {
        "optimizer": {"class_name": "SGD", "config": {"momentum": 0.9}},
        "learning_rate_factor": 30.0,
    },
    "multi_adaptive": {"compile": {"strategy": "multi_adaptive"}},
    # Strategies.
    "alternating": {"compile": {"strategy": "alternating"}},
    "alternating_shared_slots": {
        "compile": {
            "strategy": {
                "class_name": "Alternating",
                "config": {"task_slots": False},
            }
        }
    },
    "alternating_sgd_momentum": {
        "compile": {"strategy": "alternating"},
        "optimizer": {"class_name": "SGD", "config": {"momentum": 0.9}},
        "learning_rate_factor": 30.0,
    },
    "round_robin": {"compile": {"strategy": "round_robin"}},
    "sampled": {"compile": {"strategy": "sampled"}},
    "random_groups_2": {
        "compile": {
            "strategy": {
                "class_name": "RandomGroups",
                "config": {"num_groups": 2},
            }
        }
    },
    "random_groups_4": {
        "compile": {
            "strategy": {
                "class_name": "RandomGroups",
                "config": {"num_groups": 4},
            }
        }
    },
    "affinity_groups": {"compile": {"strategy": "affinity_groups"}},
    "maximum_roaming": {
        "roaming": {"sharing_ratio": 0.8, "dense": True},
        "callbacks": [{"class_name": "MaximumRoaming"}],
    },
    # Balancers.
    "dynamic_weight_average": {
        "compile": {"balancer": "task_weights"},
        "callbacks": [{"class_name": "DynamicWeightAverage"}],
    },
    "famo": {
        "compile": {"balancer": "famo"},
        "search": {"balancer.decay": {"choice": [1e-3, 1e-4, 1e-5]}},
    },
    # For the landscape, whose losses are above these bounds; no decay, as in
    # the paper.
    "famo_with_bounds": {
        "compile": {
            "balancer": {
                "class_name": "FAMO",
                "config": {"decay": 0.0, "offset": [2.1, 21.0]},
            }
        },
        "only_named": True,
    },
    "geometric_mean": {"compile": {"balancer": "geometric_mean"}},
    "gradnorm": {
        "compile": {"balancer": "gradnorm"},
        "search": {"balancer.alpha": {"choice": [0.12, 0.5, 1.5]}},
    },
    "imtl_l": {"compile": {"balancer": "imtl_l"}},
    "log_loss": {"compile": {"balancer": "log_loss"}},
    "random_loss_weighting": {"compile": {"balancer": "random_loss_weighting"}},
    "slaw": {"compile": {"balancer": "slaw"}},
    "stch": {
        "compile": {"balancer": "stch"},
        "search": {"balancer.mu": {"choice": [0.1, 1.0, 10.0]}},
    },
    "uncertainty_weighting": {"compile": {"balancer": "uncertainty_weighting"}},
    # Aggregators. `sum` is `joint` by another way, a check of the instrument.
    "aligned_mtl": {"compile": {"aggregator": "aligned_mtl"}},
    "cagrad": {
        "compile": {"aggregator": "cagrad"},
        "search": {"aggregator.c": {"choice": [0.2, 0.4, 0.8]}},
    },
    "con_fig": {"compile": {"aggregator": "con_fig"}},
    "db_mtl": {"compile": {"aggregator": "db_mtl"}},
    "dual_proj": {"compile": {"aggregator": "dual_proj"}},
    "fairgrad": {
        "compile": {"aggregator": "fairgrad"},
        "search": {"aggregator.alpha": {"choice": [0.5, 1.0, 2.0]}},
    },
    "graddrop": {"compile": {"aggregator": "graddrop"}},
    "gradvac": {"compile": {"aggregator": "gradvac"}},
    "imtl_g": {"compile": {"aggregator": "imtl_g"}},
    "mean": {"compile": {"aggregator": "mean"}},
    "mgda": {"compile": {"aggregator": "mgda"}},
    "moco": {"compile": {"aggregator": "moco"}},
    "nash_mtl": {"compile": {"aggregator": "nash_mtl"}},
    "normalized": {"compile": {"aggregator": "normalized"}},
    "pcgrad": {"compile": {"aggregator": "pcgrad"}},
    "sum": {"compile": {"aggregator": "sum"}},
    "task_tensioner": {"compile": {"aggregator": "task_tensioner"}},
    "upgrad": {"compile": {"aggregator": "upgrad"}},
}
