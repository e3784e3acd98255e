"""interleave and zip: what comes when, how often, and training with it."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from nets import assert_same_bits, mlp, values

import mtlkeras
from mtlkeras.datasets import interleave
from mtlkeras.datasets import zip as zip_datasets
from mtlkeras.strategies import Sampled

FEATURES = 6


def rows(start, count, batch_size=2, weights=None):
    """Data whose first feature numbers the rows, from `start` on."""
    x = np.tile(np.arange(start, start + count)[:, None], (1, FEATURES))
    x = x.astype("float32")
    parts = (x, x[:, :1] * 10)
    if weights is not None:
        parts += (np.full(count, weights, "float32"),)
    return tf.data.Dataset.from_tensor_slices(parts).batch(batch_size)


def three(sizes=(3, 5, 2), batch_size=2):
    """Data sets of the given numbers of batches, rows from 0, 100, 200 on."""
    return {
        name: rows(100 * i, size * batch_size, batch_size)
        for i, (name, size) in enumerate(
            zip(("left", "middle", "right"), sizes, strict=True)
        )
    }


def seen(dataset):
    """The numbers of the rows of every batch."""
    return [
        x[:, 0].astype(int).tolist() for x, *_ in dataset.as_numpy_iterator()
    ]


def order(dataset):
    """The index of every batch's data set."""
    firsts = dataset.map(lambda x, y, weight: x[0, 0])
    return [int(first) // 100 for first in firsts.as_numpy_iterator()]


def counts(batches):
    numbers, found = np.unique(sum(batches, []), return_counts=True)
    return dict(zip(numbers.tolist(), found.tolist(), strict=True))


class TestElements:
    def test_absent_tasks_have_zeros_and_weight_0(self):
        data = {
            "left": rows(1, 4),
            "middle": rows(101, 6, batch_size=3, weights=0.25),
        }
        for x, y, weight in interleave(data).as_numpy_iterator():
            assert list(y) == list(weight) == ["left", "middle"]
            here, other = ("left", "middle")[:: 1 if x[0, 0] < 100 else -1]
            np.testing.assert_array_equal(y[here], x[:, :1] * 10)
            assert weight[here].tolist() == [
                1.0 if here == "left" else 0.25
            ] * len(x)
            assert y[other].shape == (len(x), 1)
            assert not y[other].any()
            assert weight[other].tolist() == [0.0] * len(x)
            assert weight[other].dtype == np.float32

    def test_zip_holds_rows_of_all(self):
        data = {"left": rows(1, 4), "middle": rows(101, 6, 3, weights=0.25)}
        for x, y, weight in zip_datasets(data).as_numpy_iterator():
            assert x.shape == (5, FEATURES)
            assert weight["left"].tolist() == [1.0, 1.0, 0, 0, 0]
            assert weight["middle"].tolist() == [0, 0, 0.25, 0.25, 0.25]
            for i, task in enumerate(("left", "middle")):
                of_task = x[:, 0] // 100 == i
                expected = np.where(of_task[:, None], x[:, :1] * 10, 0)
                np.testing.assert_array_equal(y[task], expected)

    @pytest.mark.parametrize("combine", [interleave, zip_datasets])
    def test_targets_of_several_tasks_and_weights_per_pixel(self, combine):
        def dataset(y, weight=None, count=4):
            x = {"image": np.ones((count, 8, 8, 3), "uint8")}
            parts = (x, y) if weight is None else (x, y, weight)
            return tf.data.Dataset.from_tensor_slices(parts).batch(4)

        depth = np.ones((4, 8, 8, 1), "float16")
        data = {
            "scenes": dataset(
                {"depth": depth, "label": np.arange(4, dtype="int64")},
                {"depth": np.full((4, 8, 8), 2, "int32")},
            ),
            "faces": dataset({"label": np.arange(4) + 1}),
            "depth": dataset(depth * 3),
        }
        dataset = combine(data)
        x, y, weight = dataset.element_spec
        assert y["depth"].dtype == tf.float16
        assert y["label"].dtype == tf.int64
        found = list(dataset.as_numpy_iterator())
        parts = [
            np.concatenate([part(batch) for batch in found])
            for part in (
                lambda b: b[1]["depth"][:, 0, 0, 0],
                lambda b: b[2]["depth"][:, 0, 0],
                lambda b: b[1]["label"],
                lambda b: b[2]["label"],
            )
        ]
        np.testing.assert_array_equal(parts[0], [1] * 4 + [0] * 4 + [3] * 4)
        np.testing.assert_array_equal(parts[1], [2] * 4 + [0] * 4 + [1] * 4)
        np.testing.assert_array_equal(
            parts[2], [0, 1, 2, 3, 1, 2, 3, 4, 0, 0, 0, 0]
        )
        np.testing.assert_array_equal(parts[3], [1] * 8 + [0] * 4)

    @pytest.mark.parametrize("combine", [interleave, zip_datasets])
    def test_missing_inputs_are_filled_where_wanted(self, combine):
        def dataset(**inputs):
            return tf.data.Dataset.from_tensor_slices(
                (inputs, np.ones((2, 1)))
            ).batch(2)

        image = np.ones((2, 4, 4, 1), "float32")
        data = {
            "left": dataset(image=image, text=np.array(["a", "b"])),
            "right": dataset(image=image),
        }
        with pytest.raises(ValueError, match=r"'right' without \['text'\]"):
            combine(data)
        found = list(
            combine(data, fill_missing_inputs=True).as_numpy_iterator()
        )
        texts = np.concatenate([x["text"] for x, *_ in found])
        assert texts.tolist() == [b"a", b"b", b"", b""]

    def test_one_data_set(self):
        assert seen(interleave({"left": rows(0, 4)})) == [[0, 1], [2, 3]]


class TestOrder:
    def test_in_turn(self):
        dataset = interleave(three(), stop=7)
        assert order(dataset) == [0, 1, 2, 0, 1, 2, 0]

    def test_probabilities_are_met(self):
        p = {"right": 0.1, "left": 0.2, "middle": 0.7}
        found = order(interleave(three(), p, stop=4000, seed=3))
        expected = np.array([0.2, 0.7, 0.1]) * 4000
        observed = np.bincount(found, minlength=3)
        assert scipy.stats.chisquare(observed, expected).pvalue > 0.01
        # And draws do not depend on the one before.
        pairs = np.zeros((3, 3))
        np.add.at(pairs, (found[:-1], found[1:]), 1)
        assert scipy.stats.chi2_contingency(pairs).pvalue > 0.01

    @pytest.mark.parametrize("temperature", [None, 1, 2, 5, 0.5])
    def test_temperatures(self, temperature):
        sizes = np.array([3, 40, 9])
        found = order(
            interleave(
                three(sizes, batch_size=1),
                "proportional",
                temperature=temperature,
                stop=3000,
                seed=1,
            )
        )
        p = sizes ** (1 / (temperature or 1))
        observed = np.bincount(found, minlength=3)
        expected = p / p.sum() * 3000
        assert scipy.stats.chisquare(observed, expected).pvalue > 0.01

    def test_a_probability_of_0(self):
        found = order(interleave(three(), [0.5, 0.0, 0.5], stop=200))
        assert set(found) == {0, 2}

    def test_the_seed_decides(self):
        def drawn(seed):
            data = interleave(three(), "proportional", stop=60, seed=seed)
            return seen(data)

        assert drawn(0) == drawn(0)
        assert drawn(0) != drawn(1)

    def test_draws_are_those_of_the_strategy(self):
        p = {"left": 0.2, "middle": 0.7, "right": 0.1}
        sampled = Sampled(p, seed=4)
        sampled.bind(tuple(p))
        expected = [int(sampled.select_group(step)) for step in range(50)]
        data = interleave(three(), p, stop=None, seed=4).take(50)
        assert order(data) == expected

    @pytest.mark.parametrize("probabilities", [None, "proportional"])
    def test_equal_in_every_epoch_and_after_skip(self, probabilities):
        data = interleave(three(), probabilities, seed=2)
        whole = seen(data)
        assert seen(data) == whole
        for number in (1, 5, len(whole) - 1):
            assert seen(data.skip(number)) == whole[number:]


class TestStop:
    """Sizes are 3, 5 and 2 batches of 2 rows."""

    def test_in_turn_until_all_are_exhausted(self):
        data = interleave(three())
        batches = seen(data)
        assert len(data) == len(batches) == 3 * 5
        found = counts(batches)
        assert [found[100 + i] for i in range(10)] == [1] * 10
        assert [found[i] for i in range(6)] == [2] * 4 + [1] * 2
        assert [found[200 + i] for i in range(4)] == [3] * 2 + [2] * 2

    def test_in_turn_until_the_first_is_exhausted(self):
        data = interleave(three(), stop="first_exhausted")
        assert order(data) == [0, 1, 2] * 2
        assert len(data) == 6
        assert set(counts(seen(data)).values()) == {1}

    @pytest.mark.parametrize("seed", range(5))
    def test_drawn_until_all_are_exhausted(self, seed):
        data = interleave(three(), [0.3, 0.3, 0.4], seed=seed)
        found = order(data)
        assert len(data) == len(found)
        drawn = np.bincount(found)
        assert (drawn >= [3, 5, 2]).all()
        # The last one has just been seen to its end, and exactly once.
        last = found[-1]
        assert drawn[last] == [3, 5, 2][last]
        of_last = [b for b in seen(data) if b[0] // 100 == last]
        assert set(counts(of_last).values()) == {1}

    @pytest.mark.parametrize("seed", range(5))
    def test_drawn_until_the_first_is_exhausted(self, seed):
        p = [0.3, 0.3, 0.4]
        data = interleave(three(), p, stop="first_exhausted", seed=seed)
        assert set(counts(seen(data)).values()) == {1}
        found = order(data)
        assert len(data) == len(found)
        # The next draw is of one that is used up.
        drawn = np.bincount(found, minlength=3)
        following = order(
            interleave(three(), p, stop=len(found) + 1, seed=seed)
        )[-1]
        assert drawn[following] == [3, 5, 2][following]

    @pytest.mark.parametrize("probabilities", [None, [0.1, 0.2, 0.7]])
    def test_once(self, probabilities):
        data = interleave(three(), probabilities, stop="once")
        batches = seen(data)
        assert len(data) == len(batches) == 10
        assert len(counts(batches)) == 20
        for i in range(3):
            of_one = [b[0] for b in batches if b[0] // 100 == i]
            assert of_one == sorted(of_one)

    def test_once_with_unknown_sizes(self):
        data = {n: d.filter(lambda x, y: True) for n, d in three().items()}
        batches = seen(interleave(data, stop="once"))
        assert len(counts(batches)) == 20

    def test_never(self):
        data = interleave(three(), stop=None)
        assert order(data.take(31)) == ([0, 1, 2] * 11)[:31]

    def test_many_draws_are_counted_in_blocks(self):
        sizes, p = [20000, 30000, 100], [0.45, 0.45, 0.1]
        data = three(sizes, batch_size=1)
        sampled = Sampled(dict(zip(data, p, strict=True)), seed=0)
        sampled.bind(tuple(data))
        drawn = np.array(sampled.select_group(np.arange(100_000)))
        ends = [
            np.flatnonzero(drawn == i)[size - 1] for i, size in enumerate(sizes)
        ]
        assert len(interleave(data, p)) == max(ends) + 1 > 60000
        ends = [
            np.flatnonzero(drawn == i)[size] for i, size in enumerate(sizes)
        ]
        assert len(interleave(data, p, stop="first_exhausted")) == min(ends)

    def test_zip(self):
        data = three()
        assert [len(b) for b in seen(zip_datasets(data))] == [6] * 5
        found = counts(seen(zip_datasets(data)))
        assert [found[100 + i] for i in range(10)] == [1] * 10
        first = zip_datasets(data, stop="first_exhausted")
        assert len(first) == len(seen(first)) == 2
        assert set(counts(seen(first)).values()) == {1}
        assert len(seen(zip_datasets(data, stop=7))) == 7
        assert seen(zip_datasets(data).skip(3)) == seen(zip_datasets(data))[3:]
        endless = zip_datasets(data, stop=None)
        assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
        assert len(seen(endless.take(11))) == 11

    def test_infinite_data_beside_finite(self):
        data = three()
        data["left"] = data["left"].repeat()
        stopped = interleave(data, stop="first_exhausted")
        assert len(seen(stopped)) == 6
        assert len(seen(zip_datasets(data, "first_exhausted"))) == 2


def compiled(strategy="joint", **arguments):
    model = mlp(features=FEATURES)
    model.compile(
        keras.optimizers.Adam(0.02),
        loss=dict.fromkeys(model.task_names, "mse"),
        weighted_metrics=dict.fromkeys(model.task_names, "mae"),
        strategy=strategy,
        **arguments,
    )
    return model


def normal_data(sizes=(48, 96, 24), batch_size=8):
    rng = np.random.default_rng(0)
    data = {}
    for task, size in zip(("left", "middle", "right"), sizes, strict=True):
        x = rng.normal(size=(size, FEATURES)).astype("float32")
        data[task] = tf.data.Dataset.from_tensor_slices(
            (x, np.tanh(x @ rng.normal(size=(FEATURES, 1))).astype("float32"))
        ).batch(batch_size)
    return data


P = {"left": 0.2, "middle": 0.5, "right": 0.3}


class TestTraining:
    @pytest.mark.parametrize(
        ("combine", "strategy"),
        [
            pytest.param(interleave, "joint", id="joint"),
            pytest.param(interleave, "alternating", id="alternating"),
            pytest.param(interleave, "round_robin", id="round_robin"),
            pytest.param(interleave, Sampled(P, seed=0), id="sampled"),
            pytest.param(zip_datasets, "joint", id="zip_joint"),
            pytest.param(zip_datasets, "alternating", id="zip_alternating"),
        ],
    )
    def test_every_task_learns(self, combine, strategy):
        data = combine(normal_data())
        model = compiled(strategy)
        before = model.evaluate(data, verbose=0, return_dict=True)
        model.fit(data, epochs=6, verbose=0, shuffle=False)
        after = model.evaluate(data, verbose=0, return_dict=True)
        for task in model.task_names:
            key = f"{task}_loss"
            assert after[key] < 0.7 * before[key], task

    @pytest.mark.parametrize(
        ("strategy", "arguments"),
        [
            ("alternating", {}),
            ("alternating", {"probabilities": "proportional"}),
            ("round_robin", {}),
            (
                Sampled(P, seed=5),
                {"probabilities": P, "seed": 5, "stop": None},
            ),
            # Orders of their own, which the labels of the batch overrule.
            ("round_robin", {"probabilities": "proportional"}),
            ("sampled", {"stop": "once"}),
        ],
    )
    def test_no_batch_is_left_unused(self, strategy, arguments):
        data = interleave(normal_data(), **arguments)
        steps = None if len_or_none(data) else 20
        model = compiled(strategy)
        model.fit(
            data, epochs=2, steps_per_epoch=steps, verbose=0, shuffle=False
        )
        batches = data.repeat() if steps is None else data
        found = [
            [weight[task].any() for task in model.task_names].index(True)
            for *_, weight in batches.take(
                2 * (steps or len(data))
            ).as_numpy_iterator()
        ]
        updates = [int(o.iterations) for o in model.optimizer.optimizers]
        assert updates == np.bincount(found, minlength=3).tolist()

    def test_a_batch_of_one_task_is_a_step_of_that_task_alone(self):
        """Against a plain Keras model per task that shares the trunk."""
        data = interleave(normal_data(), stop=6)
        model = compiled("alternating")
        reference = mlp(features=FEATURES)
        single = {}
        for task in model.task_names:
            part = keras.Model(reference.input, reference.output[task])
            part.compile(keras.optimizers.Adam(0.02), "mse")
            single[task] = part
        for x, y, weight in data:
            (task,) = [t for t in y if np.any(weight[t])]
            single[task].train_on_batch(x, y[task])
        model.fit(data, verbose=0, shuffle=False)
        for a, b in zip(
            values(model.variables), values(reference.variables), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_the_same_bits_in_a_second_run(self):
        def run():
            data = {
                name: d.shuffle(20, seed=1, reshuffle_each_iteration=False)
                for name, d in normal_data().items()
            }
            model = compiled("alternating")
            data = interleave(data, "proportional")
            model.fit(data, epochs=2, verbose=0, shuffle=False)
            return values(model.variables + model.optimizer.variables)

        assert_same_bits(run(), run())

    def test_resumed_in_the_middle_of_an_epoch(self, tmp_path):
        class Killer(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if self.model.optimizer.iterations >= len(data) + 5:
                    raise KeyboardInterrupt

        data = interleave(normal_data(), "proportional", temperature=2, stop=20)

        def run(*callbacks):
            model = compiled("alternating")
            history = model.fit(
                data,
                epochs=2,
                verbose=0,
                shuffle=False,
                callbacks=list(callbacks),
            )
            state = values(model.variables + model.optimizer.variables)
            return state, history.history["loss"][-1]

        def backup():
            return mtlkeras.callbacks.BackupAndResume(tmp_path / "b", 3)

        with pytest.raises(KeyboardInterrupt):
            run(Killer(), backup())
        resumed, resumed_loss = run(backup())
        whole, whole_loss = run()
        assert_same_bits(resumed, whole)
        assert resumed_loss == whole_loss

    def test_evaluation_sees_every_row_once(self):
        data = normal_data((46, 93, 21))  # with smaller last batches
        model = compiled()
        found = model.evaluate(
            interleave(data, stop="once"), verbose=0, return_dict=True
        )
        for task, dataset in data.items():
            x = np.concatenate([x for x, _ in dataset.as_numpy_iterator()])
            y = np.concatenate([y for _, y in dataset.as_numpy_iterator()])
            error = model.predict(x, verbose=0)[task] - y
            assert found[f"{task}_mae"] == pytest.approx(
                np.abs(error).mean(), rel=1e-5
            )
            assert found[f"{task}_loss"] == pytest.approx(
                (error**2).mean(), rel=1e-5
            )

    def test_zipped_losses_as_the_docstring_says(self):
        data = zip_datasets(normal_data((8, 16, 24)), stop=1)
        x, y, weight = next(data.as_numpy_iterator())
        model = compiled()
        prediction = model.predict(x, verbose=0)
        own = {
            t: ((prediction[t] - y[t]) ** 2)[weight[t] > 0].mean() for t in y
        }
        found = model.evaluate(data, verbose=0, return_dict=True)
        model.compile(
            loss={
                t: keras.losses.MeanSquaredError("mean_with_sample_weight")
                for t in y
            }
        )
        means = model.evaluate(data, verbose=0, return_dict=True)
        for task in y:
            share = weight[task].mean()
            assert means[f"{task}_loss"] == pytest.approx(own[task], rel=1e-5)
            assert found[f"{task}_loss"] == pytest.approx(
                own[task] * share, rel=1e-5
            )


def len_or_none(dataset):
    size = int(dataset.cardinality())
    return size if size > 0 else None


def image(*shape):
    return tf.data.Dataset.from_tensor_slices(
        (np.ones((4, *shape), "float32"), np.ones((4, 1)))
    ).batch(2)


class TestBadData:
    @pytest.mark.parametrize("combine", [interleave, zip_datasets])
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({}, "`datasets` must be a dict"),
            ([rows(0, 4)], "`datasets` must be a dict"),
            ({"a": np.ones(3)}, "'a' must be a `tf.data.Dataset`"),
            ({"a": rows(0, 4).map(lambda x, y: x)}, r"'a' must yield `\(x, y"),
            ({"a": rows(0, 4).unbatch()}, r"be batched.*dataset.batch\("),
            (
                {
                    "a": tf.data.Dataset.from_tensor_slices(
                        (np.ones((4, 3)), np.ones(4))
                    )
                },
                "be batched",
            ),
            ({"a": rows(0, 4).take(0)}, "at least one batch.*'a'"),
            (
                {"a": image(8, 8, 3), "b": image(4, 4, 3)},
                r"input 0 .*\(None, 8, 8, 3\).*'a', .*\(None, 4, 4, 3\).*'b'",
            ),
            (
                {"a": image(8), "b": image(8, 1)},
                "same shape",
            ),
            (
                {
                    "a": image(8),
                    "b": image(8).map(lambda x, y: (tf.cast(x, "int32"), y)),
                },
                "float32 from 'a', .*int32 from 'b'",
            ),
            (
                {
                    "a": image(8),
                    "b": image(8).map(lambda x, y: ({"x": x}, y)),
                },
                "same structure",
            ),
            (
                {
                    "a": image(8),
                    "b": image(8).map(lambda x, y: ((x, x), y)),
                },
                "same structure",
            ),
            (
                {
                    "a": image(8).map(lambda x, y: (x, {"t": y})),
                    "b": image(8).map(lambda x, y: (x, {"t": y[:, 0]})),
                },
                "target 't' must have the same shape",
            ),
            (
                {
                    "a": image(8).map(lambda x, y: (x, y, {"b": y[:, 0]})),
                    "b": image(8),
                },
                "have a target for every sample weight",
            ),
            (
                {
                    "a": tf.data.Dataset.from_generator(
                        lambda: [(np.ones((2, 3)), np.ones((2, 5)))],
                        output_signature=(
                            tf.TensorSpec((None, 3)),
                            tf.TensorSpec((None, None)),
                        ),
                    ),
                    "b": image(3),
                },
                "target 'a' must have a known shape",
            ),
        ],
    )
    def test_data(self, combine, data, message):
        with pytest.raises(ValueError, match=message):
            combine(data, stop=2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"probabilities": "equal"}, "`probabilities` must be"),
            ({"probabilities": [0.5, 0.5]}, "`probabilities` must be"),
            ({"probabilities": [0.5, 0.5, 0.5]}, "sum to 1"),
            ({"probabilities": [1.5, -0.5, 0.0]}, "non-negative"),
            ({"probabilities": {"left": 1.0}}, "`probabilities` must be"),
            ({"temperature": 2}, "needs `probabilities`"),
            (
                {"temperature": 0, "probabilities": "proportional"},
                "`temperature` must be",
            ),
            ({"stop": "longest"}, "`stop` must be one of"),
            ({"stop": 0}, "`stop` must be one of"),
            ({"stop": True}, "`stop` must be one of"),
            ({"seed": -1}, "`seed` must be"),
            ({"seed": 0.5}, "`seed` must be"),
            ({"probabilities": [0.5, 0.5, 0]}, "often enough"),
            (
                {"probabilities": [0.5, 0.5, 0], "stop": "once"},
                r"\['right'\] would never",
            ),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            interleave(three(), **arguments)

    def test_infinite_data(self):
        data = {n: d.repeat() for n, d in three().items()}
        for arguments in (
            {"probabilities": "proportional", "stop": 3},
            {"stop": "all_exhausted"},
            {"stop": "first_exhausted"},
            {"stop": "once"},
        ):
            with pytest.raises(ValueError, match="which are infinite"):
                interleave(data, **arguments)
        with pytest.raises(ValueError, match="which are infinite"):
            zip_datasets(data)
        assert order(interleave(data, stop=4)) == [0, 1, 2, 0]

    def test_unknown_sizes(self):
        data = {n: d.filter(lambda x, y: True) for n, d in three().items()}
        for arguments in (
            {"probabilities": "proportional", "stop": 3},
            {"stop": "all_exhausted"},
            {"stop": "first_exhausted"},
        ):
            with pytest.raises(ValueError, match="assert_cardinality"):
                interleave(data, **arguments)
        with pytest.raises(ValueError, match="assert_cardinality"):
            zip_datasets(data)
        assert order(interleave(data, stop=4)) == [0, 1, 2, 0]
        known = {
            n: d.apply(tf.data.experimental.assert_cardinality(k))
            for (n, d), k in zip(data.items(), (3, 5, 2), strict=True)
        }
        assert len(interleave(known)) == 15
