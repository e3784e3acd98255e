import difflib

from mtlkeras.backend.tensorflow import tfds_examples
from mtlkeras.backend.tensorflow.tfds_recipes import recipe_for


def from_tfds(
    name,
    tasks=None,
    split="train",
    inputs=None,
    image_size=None,
    batch_size=32,
    shuffle_buffer=0,
    seed=0,
    download=False,
    data_dir=None,
):
    """A data set of TensorFlow Datasets, with its labels as tasks.

    Any builder will do if you say which features are inputs and which are
    targets. For these it is known; their tasks are:

    | name | inputs | tasks (in bold: those taken by default) |
    |---|---|---|
    | `celeb_a` | image | **the 40 attributes** |
    | `cityscapes` | left image | **segmentation**, **disparity** |
    | `movielens` | user_id, movie_id | **rating**, **liked**, genres, gender |
    | `nyu_depth_v2` | image | **depth** |
    | `oxford_iiit_pet` | image | **breed**, **species**, **mask**, head |
    | `shapes3d` | image | **six factors** |

    Rows come in the order of the files, the same every time. Images as inputs
    are float32 from 0 to 255. As targets, booleans and floats become float32,
    of shape `[1]` where they are scalars, and integers int32.

    Args:
        name: String, as for `tfds.load`, with a config and a version if
            needed.
        tasks: Dict from task to one of the ready-made tasks above, the path of
            a feature as `"attributes/Smiling"`, or a function from an example
            to a tensor (in TensorFlow operations); or a list of names.
            Defaults to `None`: see the table.
        split: String, e.g. `"train[:80%]"`. Defaults to `"train"`.
        inputs: Path or function, or a dict of these. Defaults to `None`: see
            the table.
        image_size: `(height, width)`: inputs and targets of shape
            `[height, width, channels]` are resized, inputs bilinearly, targets
            to the nearest pixel. Defaults to `None`.
        batch_size: Integer, or `None` for single rows. Defaults to `32`.
        shuffle_buffer: Integer, how many rows `shuffle` draws from, anew in
            every epoch. Defaults to `0`: no shuffling.
        seed: Integer, for shuffling. Defaults to `0`.
        download: Boolean. Download and prepare the data if needed. Defaults to
            `False`: that is an error.
        data_dir: Path of the folder where TensorFlow Datasets keeps its data.
            Defaults to `None`, its own default.

    Returns:
        A `tf.data.Dataset` of `(x, y)`, `y` a dict over the tasks.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        FileNotFoundError: If the data are not there and `download` is `False`.
        ValueError: If there is no such data set or feature.

    Example:

    >>> train = from_tfds(  # doctest: +SKIP
    ...     "celeb_a", ["Smiling", "Young"], image_size=(64, 64)
    ... )
    >>> pets = from_tfds(  # doctest: +SKIP
    ...     "oxford_iiit_pet",
    ...     {"breed": "label", "is_dog": lambda e: e["species"] == 1},
    ...     split="train[:80%]",
    ...     image_size=(128, 128),
    ... )

    Details:

    - `cityscapes`: segmentation and disparity are in two configs of the
      builder, which are joined on `image_id`; both must be prepared. Classes
      are the 19 that are evaluated, -1 elsewhere: use
      `losses.MaskedLoss(loss, missing=-1)`. Disparities are in pixels of the
      full width, whole ones, since TensorFlow Datasets keeps 8 of their 16
      bits; NaN where nothing was measured.
    - `nyu_depth_v2`: depth only. The segmentation and the normals that papers
      use beside it are not in TensorFlow Datasets.
    - `oxford_iiit_pet`: masks are 0 pet, 1 background, 2 border; `head` is the
      box of the head, NaN in the test split, which has none. Images differ in
      size: pass `image_size`.
    - `movielens`: the default config has no gender; `100k-ratings` and
      `1m-ratings` do. `liked` is a rating of 4 or more.

    References:
        - [TensorFlow Datasets](https://www.tensorflow.org/datasets), with the
          licence and the citation of each data set
    """
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    recipe = recipe_for(builder.name, features)
    inputs, tasks, joined = resolve(builder, recipe, inputs, tasks)

    def read(builder, decoders=None):
        if download:
            builder.download_and_prepare()
        try:
            return builder.as_dataset(
                split=split,
                decoders=decoders,
                # One file after the other: two configs give the same order.
                read_config=tfds.ReadConfig(interleave_cycle_length=1),
            )
        except AssertionError as error:
            raise FileNotFoundError(
                f"The data of '{builder.info.full_name}' must be prepared. "
                f"Received: nothing in '{builder.data_dir}'. Pass "
                "`download=True`, or `data_dir` if they are elsewhere. "
                + (builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "")
            ) from error

    examples = read(builder)
    for config, feature in joined:
        other = tfds.builder(f"{builder.name}/{config}", data_dir=data_dir)
        wanted = tfds.decode.PartialDecoding({recipe.key: True, feature: True})
        examples = tfds_examples.join(
            examples, read(other, wanted), recipe.key, feature
        )
    if shuffle_buffer:
        examples = examples.shuffle(shuffle_buffer, seed=seed)
    pairs = tfds_examples.as_pairs(examples, inputs, tasks, image_size)
    if batch_size is None:
        return pairs
    return tfds_examples.batched(pairs, batch_size)


def resolve(builder, recipe, inputs, tasks):
    """Inputs and tasks as paths and functions, and the configs to join."""
    paths = leaf_features(builder.info.features)
    known = recipe.targets if recipe else {}
    if tasks is None and recipe:
        tasks = recipe.default
    if isinstance(tasks, (list, tuple)):
        tasks = {task: task for task in tasks}
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(
            "Argument `tasks` must be a dict from task to a feature or a "
            f"function, or a list of names. Received: tasks={tasks!r}. "
            + listed(builder, paths, known)
        )
    joined = {}
    targets = {}
    for task, given in tasks.items():
        # A ready-made task is more than the feature of the same name.
        if isinstance(given, str) and given in known:
            if given in recipe.joined:
                config, feature = recipe.joined[given]
                if feature not in paths:
                    joined[config, feature] = None
            given = known[given]
        targets[task] = checked(given, builder, paths, known)
    if inputs is None and recipe:
        inputs = recipe.inputs
    if inputs is None:
        raise ValueError(
            "Argument `inputs` must name a feature, since none is known for "
            "this data set. Received: inputs=None. "
            + listed(builder, paths, {})
        )
    if not isinstance(inputs, dict):
        return checked(inputs, builder, paths, {}), targets, list(joined)
    inputs = {k: checked(v, builder, paths, {}) for k, v in inputs.items()}
    return inputs, targets, list(joined)


def checked(given, builder, paths, known):
    """The path or function as it is; raises if there is no such feature."""
    if callable(given) or given in paths:
        return given
    near = difflib.get_close_matches(str(given), [*paths, *known], 1, 0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        "Inputs and tasks must be features of the data set, or functions. "
        f"Received: {given!r}.{hint} " + listed(builder, paths, known)
    )


def listed(builder, paths, known):
    ready = f" Ready-made tasks: {', '.join(known)}." if known else ""
    shown = "".join(f"\n  {path}: {what}" for path, what in paths.items())
    return f"{ready}\nThe features of '{builder.info.full_name}' are:{shown}"


def leaf_features(features, prefix=""):
    """Dict from path to description, for all that are no dict themselves."""
    found = {}
    for name, feature in features.items():
        if hasattr(feature, "items"):
            found.update(leaf_features(feature, f"{prefix}{name}/"))
        else:
            dtype = getattr(feature.dtype, "name", feature.dtype)
            found[prefix + name] = f"{dtype} {feature.shape}"
    return found


def import_tfds():
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise ImportError(
            "`mtlkeras.datasets.from_tfds` needs TensorFlow Datasets, but the "
            f"package `{error.name}` is not installed. Install it with: "
            '`pip install "mtlkeras[tfds]"`'
        ) from error
    return tensorflow_datasets
