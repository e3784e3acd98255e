"""One line per public object: every line inherits the checks of all files.

To add a strategy, add a line to `STRATEGIES` (for the tasks of `nets.TASKS`)
and its name to `PUBLIC`; an aggregator, a line to `AGGREGATORS`, or a balancer,
one to `BALANCERS` (both for three tasks), and its name to `PUBLIC`; a layer, a
line to `LAYERS` with the number of channels of its inputs and its name to
`PUBLIC`.
"""

import functools

import keras
import numpy as np

from mtlkeras import aggregators, balancers, layers, strategies


class Case:
    """A strategy to test, and a short id for pytest."""

    def __init__(self, strategy, id=None):
        self.given = strategy
        self.id = id or strategy

    def strategy(self):
        """A new object, since a strategy remembers the tasks it is bound to."""
        if isinstance(self.given, str):
            return strategies.get(self.given)
        return type(self.given).from_config(self.given.get_config())

    @property
    def measures(self):
        """Whether a batch ends with a forward pass that trains nothing."""
        return self.strategy().regroups == "measured"

    def visits(self, task_names, step, draw=0, groups=None, labelled=None):
        """`(group index, task names)` in the order that batch `step` visits.

        Args:
            task_names: Tuple of strings.
            step: Number of the batch.
            draw: The batch number at the last epoch's end, for strategies that
                draw groups once per epoch.
            groups: Tuple of tuples of task names, for strategies that measure
                which tasks go together. Defaults to `None`: before they did.
            labelled: List of booleans, which tasks have labels in the batch,
                for strategies that choose one group, of one task. Defaults to
                `None`: all.
        """
        strategy = self.strategy()
        strategy.bind(task_names)
        groups = groups or strategy.task_groups(task_names)
        if strategy.regroups == "measured":
            # A group's slots are those of its first task.
            return [
                (task_names.index(groups[k][0]), groups[k])
                for k in map(int, strategy.order_groups(step))
                if k < len(groups)
            ]
        if strategy.regroups != "never":
            draw = step if strategy.regroups == "step" else draw
            assigned = keras.ops.convert_to_numpy(strategy.assign_groups(draw))
            groups = [
                tuple(
                    name
                    for name, index in zip(task_names, assigned, strict=True)
                    if index == group
                )
                for group in range(len(groups))
            ]
        order = range(len(groups))
        if strategy.one_group_per_step:
            flags = np.ones(len(groups), bool) if labelled is None else labelled
            order = [int(strategy.select_labelled_group(step, flags))]
        elif strategy.shuffle:
            order = [int(k) for k in strategy.order_groups(step)]
        return [(k, groups[k]) for k in order]

    def __repr__(self):
        return self.id


STRATEGIES = [
    Case(
        strategies.AffinityGroups(0.5, 2, 3, preference=0.3, seed=0),
        "affinity_groups",
    ),
    Case(
        strategies.AffinityGroups(
            0.5, 0, preference="median", task_slots=False, seed=1
        ),
        "affinity_groups_one_state",
    ),
    Case("joint"),
    Case("alternating"),
    Case(strategies.Alternating(shuffle=True, seed=1), "alternating_shuffled"),
    Case(strategies.Alternating(task_slots=False), "alternating_one_state"),
    Case(strategies.Grouped([["right"], ["left", "middle"]]), "grouped"),
    Case(strategies.RandomGroups(2, seed=0), "random_groups"),
    Case(strategies.RandomGroups(2, "epoch", seed=1), "random_groups_epoch"),
    Case(strategies.RandomGroups(2, "step", seed=2), "random_groups_step"),
    Case("round_robin"),
    Case(strategies.Sampled(seed=3), "sampled"),
    Case("multi_adaptive"),
]

# Those whose tasks have updates of their own: rules of sub-steps hold for them.
SUB_STEPPED = [case for case in STRATEGIES if case.id != "joint"]


class AggregatorCase:
    """An aggregator to test, and what is special to it.

    Args:
        aggregator: An id or an object for three tasks.
        id: String for pytest. Defaults to the id.
        degree: Number `k` so that gradients times `s` give a direction times
            `s^k`; `None` where there is none. Defaults to 1.
        equivariant: Whether the direction does not depend on the order of the
            tasks, in the first step. Defaults to `True`.
        never_harms: Whether no task gets worse, to first order. Defaults to
            `False`.
        ill_posed: Kinds of matrices (see `jacobians`) where rounding of the
            gradients decides what the direction is. Defaults to none.
    """

    def __init__(
        self,
        aggregator,
        id=None,
        degree=1,
        equivariant=True,
        ill_posed=(),
        never_harms=False,
    ):
        self.given = aggregators.get(aggregator)
        self.id = id or aggregator
        self.degree = degree
        self.equivariant = equivariant
        self.ill_posed = set(ill_posed)
        self.never_harms = never_harms
        self.config = self.given.get_config()
        self.is_gramian = isinstance(self.given, aggregators.GramianAggregator)

    def aggregator(self, tasks=None):
        """A new object.

        Args:
            tasks: Indices of tasks: the rule as it is for these alone.
        """
        config = self.config
        if tasks is not None:
            config = restrict(config, tasks)
        return type(self.given).from_config(config)

    def for_tasks(self, tasks):
        """The case of the rule for some of its tasks."""
        return AggregatorCase(self.aggregator(tasks), f"{self.id}{tasks}")

    def __repr__(self):
        return self.id


def restrict(config, tasks):
    """The config of a rule, its arguments per task for some tasks only."""
    config = dict(config)
    for key in ("preference", "signs", "leak"):
        if isinstance(config.get(key), list):
            config[key] = [config[key][i] for i in tasks]
    if config.get("preference"):
        # The tasks that stay share the weight of the others.
        total = sum(config["preference"])
        config["preference"] = [p / total for p in config["preference"]]
    if "aggregator" in config:
        inner = dict(config["aggregator"])
        inner["config"] = restrict(inner["config"], tasks)
        config["aggregator"] = inner
    return config


PREFERENCE = (np.array([1.0, 2.0, 3.0]) / 6).tolist()  # sums to 1

AGGREGATORS = [
    AggregatorCase("sum"),
    AggregatorCase("mean"),
    AggregatorCase(
        aggregators.Mean(PREFERENCE), "mean_preference", equivariant=False
    ),
    AggregatorCase("pcgrad", equivariant=False),
    AggregatorCase(
        aggregators.PCGrad("ascending"), "pcgrad_ascending", equivariant=False
    ),
    AggregatorCase("gradvac", equivariant=False),
    AggregatorCase(
        aggregators.GradVac(0.2, "ascending"),
        "gradvac_ascending",
        equivariant=False,
    ),
    AggregatorCase("graddrop"),
    AggregatorCase(
        aggregators.GradDrop([0.1, 0.0, 1.0], seed=5),
        "graddrop_leak",
        equivariant=False,
    ),
    AggregatorCase("mgda", never_harms=True),
    AggregatorCase(
        aggregators.MGDA("l2"),
        "mgda_l2",
        degree=0,
        ill_posed=["parallel"],
        never_harms=True,
    ),
    AggregatorCase(aggregators.MGDA("loss"), "mgda_loss", never_harms=True),
    AggregatorCase("cagrad"),
    AggregatorCase(
        aggregators.CAGrad(1.0, rescale=1), "cagrad_one", never_harms=True
    ),
    AggregatorCase(aggregators.CAGrad(10.0, rescale=2), "cagrad_ten"),
    AggregatorCase("imtl_g"),
    AggregatorCase(
        "nash_mtl",
        degree=0,
        ill_posed=["stationary", "opposite"],
        never_harms=True,
    ),
    AggregatorCase(
        aggregators.NashMTL(None, update_every=3),
        "nash_mtl_rare",
        degree=0,
        ill_posed=["stationary", "opposite"],
    ),
    AggregatorCase(
        "fairgrad",
        degree=0,
        ill_posed=["stationary", "opposite"],
        never_harms=True,
    ),
    AggregatorCase(
        aggregators.FairGrad(2.0),
        "fairgrad_two",
        degree=-1 / 3,
        ill_posed=["stationary", "opposite"],
    ),
    AggregatorCase("aligned_mtl", ill_posed=["parallel"]),
    AggregatorCase(
        aggregators.AlignedMTL("rmse", PREFERENCE),
        "aligned_mtl_rmse",
        equivariant=False,
        ill_posed=["parallel"],
    ),
    AggregatorCase("upgrad", ill_posed=["opposite"], never_harms=True),
    AggregatorCase(
        aggregators.UPGrad(PREFERENCE),
        "upgrad_preference",
        equivariant=False,
        ill_posed=["opposite"],
        never_harms=True,
    ),
    AggregatorCase("dual_proj", never_harms=True),
    AggregatorCase("con_fig"),
    AggregatorCase(
        aggregators.ConFIG(PREFERENCE), "con_fig_preference", equivariant=False
    ),
    AggregatorCase("moco", degree=None),
    AggregatorCase(
        aggregators.MoCo(scale_by_loss=True), "moco_scaled", degree=0
    ),
    AggregatorCase("db_mtl"),
    AggregatorCase("normalized", degree=0),
    AggregatorCase(
        aggregators.Normalized([1, -1, 1]),
        "normalized_signs",
        degree=0,
        equivariant=False,
    ),
    AggregatorCase("task_tensioner", ill_posed=["parallel", "lowrank"]),
    AggregatorCase(
        aggregators.TaskTensioner(window=2, bias_scale=0.5),
        "task_tensioner_short",
        ill_posed=["parallel", "lowrank"],
    ),
    AggregatorCase(aggregators.EMA("mgda"), "ema_mgda"),
    AggregatorCase(
        aggregators.EMA("pcgrad", momentum=0.5),
        "ema_pcgrad",
        equivariant=False,
    ),
]

AGGREGATOR = {case.id: case for case in AGGREGATORS}

# One per class, for checks that take long.
RULES = [
    case
    for position, case in enumerate(AGGREGATORS)
    if type(case.given)
    not in {type(earlier.given) for earlier in AGGREGATORS[:position]}
]


class BalancerCase:
    """A balancer to test, and what is special to it.

    Args:
        balancer: An id or an object for the tasks `BALANCED`.
        id: String for pytest. Defaults to the id.
        identity: Whether the weight of a single task is 1, always. Defaults to
            `False`.
        unit_free: Whether the direction of the weighted gradients does not
            depend on the units of the losses: `"always"`, once learned values
            have `"settled"` on constant losses, or `"never"` (default).
        equivariant: Whether relabelling the tasks relabels the weights.
            Defaults to `True`.
    """

    def __init__(
        self,
        balancer,
        id=None,
        identity=False,
        unit_free="never",
        equivariant=True,
    ):
        self.given = balancers.get(balancer)
        self.id = id or balancer
        self.identity = identity
        self.unit_free = unit_free
        self.equivariant = equivariant
        self.config = self.given.get_config()
        # Without values that belong to certain tasks.
        self.for_any_tasks = not any(
            isinstance(self.config.get(name), (list, dict))
            for name in self.given.per_task_arguments
        )
        self.learns = isinstance(self.given, balancers.LearnedLossBalancer)

    def balancer(self, num_tasks=None):
        """A new object, for a number of tasks or for those of `BALANCED`."""
        balancer = type(self.given).from_config(self.config)
        balancer.bind(
            BALANCED
            if num_tasks is None
            else [f"task_{k}" for k in range(num_tasks)]
        )
        return balancer

    def __repr__(self):
        return self.id


class LayerCase:
    """A layer to test, and what it takes.

    Args:
        cls: Its class.
        channels: Number of channels of its input, or a list or dict of them.
        id: String for pytest. Defaults to the name of the layer's file.
        **arguments: Of the layer.
    """

    def __init__(self, cls, channels, id=None, **arguments):
        self.cls = cls
        self.channels = channels
        self.id = id or cls.__module__.rpartition(".")[2]
        self.arguments = arguments

    @functools.cached_property
    def config(self):
        # Not before it is needed: a layer may make variables at once, and
        # importing this file must not start TensorFlow.
        return self.cls(**self.arguments).get_config()

    def layer(self, **arguments):
        """A new layer.

        Args:
            **arguments: In place of those of the case, as `dtype`.
        """
        return self.cls.from_config({**self.config, "name": None, **arguments})

    def map_inputs(self, function):
        """`function(channels)` for each input, in the inputs' structure."""
        return keras.tree.map_structure(function, self.channels)

    def inputs(self, batch_size=4, positions=(), seed=0):
        """Arrays with values in (0, 1)."""
        rng = np.random.default_rng(seed)
        return self.map_inputs(
            lambda channels: rng.uniform(
                0.05, 0.95, (batch_size, *positions, channels)
            ).astype("float32")
        )

    def __repr__(self):
        return self.id


BALANCED = ("left", "middle", "right")

BALANCERS = [
    BalancerCase("task_weights", identity=True),
    BalancerCase(
        balancers.TaskWeights({"left": 0.5, "right": 2.0}),
        "task_weights_named",
        equivariant=False,
    ),
    BalancerCase("uncertainty_weighting", unit_free="settled"),
    BalancerCase(
        balancers.UncertaintyWeighting(
            ["middle"], learning_rate=0.1, optimizer="sgd"
        ),
        "uncertainty_weighting_classification",
        unit_free="settled",
        equivariant=False,
    ),
    BalancerCase("random_loss_weighting", identity=True, equivariant=False),
    BalancerCase(
        balancers.RandomLossWeighting("dirichlet", total=3.0, seed=1),
        "random_loss_weighting_dirichlet",
        equivariant=False,
    ),
    BalancerCase("geometric_mean", identity=True, unit_free="always"),
    BalancerCase(
        balancers.GeometricMean([0.1, 1.0, 2.0]),
        "geometric_mean_offset",
        equivariant=False,
    ),
    BalancerCase("log_loss", unit_free="always"),
    BalancerCase(balancers.LogLoss(0.1), "log_loss_offset"),
    BalancerCase("imtl_l", unit_free="settled"),
    BalancerCase("stch", identity=True),
    BalancerCase(
        balancers.STCH(0.1, [1.0, 2.0, 0.5], {"right": -0.5}),
        "stch_preference",
        equivariant=False,
    ),
    BalancerCase(balancers.STCH(0.5, form="log", nadir=2.0), "stch_log"),
    BalancerCase(
        balancers.STCH(form="log", warmup=3),
        "stch_log_warmup",
        unit_free="always",
    ),
    BalancerCase("slaw", identity=True, unit_free="always"),
    BalancerCase("famo", identity=True, unit_free="always"),
    BalancerCase(
        balancers.FAMO(same_batch=True),
        "famo_same_batch",
        identity=True,
        unit_free="always",
    ),
    BalancerCase(
        balancers.FAMO(0.1, decay=0.0, offset=0.5, optimizer="sgd"),
        "famo_offset",
        identity=True,
    ),
    BalancerCase("gradnorm", identity=True),
    BalancerCase(
        balancers.GradNorm(0.0, "last_shared_layer", optimizer="sgd"),
        "gradnorm_equal",
        identity=True,
    ),
]

BALANCER = {case.id: case for case in BALANCERS}


def dense(units):
    return keras.layers.Dense(units, activation="tanh")


PAIR = ["left", "right"]

LAYERS = [
    LayerCase(layers.ChannelGate, [6, 6], budget=0.25),
    LayerCase(layers.ConversionProduct, [2, 2]),
    LayerCase(
        layers.ConversionProduct,
        [2, 2, 2],
        "conversion_product_logits",
        from_logits=True,
    ),
    LayerCase(layers.CrossStitch, {"left": 6, "right": 6}),
    LayerCase(
        layers.CrossStitch,
        [6, 6, 6],
        "cross_stitch_all",
        self_weight=0.5,
        per_channel=True,
        num_subspaces=2,
    ),
    LayerCase(
        layers.CustomizedGateControl,
        6,
        tasks=PAIR,
        task_experts=2,
        shared_experts=1,
        units=4,
    ),
    LayerCase(
        layers.CustomizedGateControl,
        [6, 3, 5],
        "customized_gate_control_layers",
        tasks=2,
        task_experts=[[dense(4)], [dense(4), dense(4)]],
        shared_experts=[dense(4)],
        shared_output=True,
        per_position=True,
    ),
    LayerCase(layers.GradientReversal, 6, factor=0.5),
    LayerCase(layers.MixtureOfExperts, 6, tasks=PAIR, experts=3, units=4),
    LayerCase(
        layers.MixtureOfExperts,
        6,
        "mixture_of_experts_layers",
        tasks=3,
        experts=[dense(4), dense(4)],
        per_position=True,
    ),
    LayerCase(layers.TaskAttention, [6, 3, 4]),
    LayerCase(
        layers.TaskAttention,
        6,
        "task_attention_alone",
        units=3,
        activation="tanh",
        batch_norm=False,
    ),
]

# One per class, for checks that take long.
LAYER_KINDS = [
    case
    for position, case in enumerate(LAYERS)
    if case.cls not in {earlier.cls for earlier in LAYERS[:position]}
]

# What each folder exports; the other folders are private.
PUBLIC = {
    "aggregators": [
        "Aggregator",
        "AlignedMTL",
        "CAGrad",
        "ConFIG",
        "DBMTL",
        "DualProj",
        "EMA",
        "FairGrad",
        "GradDrop",
        "GradVac",
        "GramianAggregator",
        "IMTLG",
        "MGDA",
        "Mean",
        "MoCo",
        "NashMTL",
        "Normalized",
        "PCGrad",
        "Sum",
        "TaskTensioner",
        "UPGrad",
        "get",
        "ids",
    ],
    "balancers": [
        "FAMO",
        "GeometricMean",
        "GradNorm",
        "IMTLL",
        "LearnedLossBalancer",
        "LogLoss",
        "LossBalancer",
        "RandomLossWeighting",
        "SLAW",
        "STCH",
        "TaskWeights",
        "UncertaintyWeighting",
        "get",
        "ids",
    ],
    "callbacks": [
        "BackupAndResume",
        "DeltaM",
        "DynamicWeightAverage",
        "MaximumRoaming",
        "TaskEarlyStopping",
        "TaskMonitor",
        "TaskWeightScheduler",
    ],
    "datasets": ["from_tfds", "interleave", "multi_digits", "scenes", "zip"],
    "layers": [
        "ChannelGate",
        "ConversionProduct",
        "CrossStitch",
        "CustomizedGateControl",
        "GradientReversal",
        "MixtureOfExperts",
        "RoamingMask",
        "TaskAttention",
        "TaskBatchNormalization",
    ],
    "losses": ["MaskedLoss"],
    "metrics": ["delta_m", "hypervolume", "mean_rank"],
    "models": ["FunctionalMultiTaskModel", "MultiTaskModel"],
    "optimizers": ["PerTaskOptimizer"],
    "plot": [
        "conflicts",
        "grouping",
        "pareto",
        "task_curves",
        "task_graph",
        "task_weights",
    ],
    "strategies": [
        "AffinityGroups",
        "Alternating",
        "Grouped",
        "Joint",
        "MultiAdaptive",
        "RandomGroups",
        "RoundRobin",
        "Sampled",
        "UpdateStrategy",
        "get",
        "ids",
    ],
    "tuner": ["MultiTaskHyperModel"],
}

# Base classes and functions beside the objects that have an id.
WITHOUT_ID = {"Aggregator", "EMA", "GramianAggregator", "UpdateStrategy"}
WITHOUT_ID |= {"LearnedLossBalancer", "LossBalancer"}
WITHOUT_ID |= {"FunctionalMultiTaskModel", "get", "ids"}
