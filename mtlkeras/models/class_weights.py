"""What `fit(class_weight={"task": {...}})` means."""


def split_class_weight(class_weight, task_names):
    """Takes class weights by task apart from Keras's own argument.

    Args:
        class_weight: As given to `fit`.
        task_names: Tuple of strings, or `None` while they are not known.

    Returns:
        Tuple of a dict from task to its class weights, and of what is left for
        Keras.

    Raises:
        ValueError: If tasks, classes or weights are not as they must be.
    """
    if not class_weight:
        return {}, class_weight
    if not isinstance(class_weight, dict):
        raise ValueError(
            "Argument `class_weight` must be a dict from task names to dicts "
            "from class indices to weights. Received: class_weight="
            f"{class_weight!r}"
        )
    by_task = [isinstance(value, dict) for value in class_weight.values()]
    if not any(by_task):
        if task_names is not None and len(task_names) > 1:
            raise ValueError(
                "A model with several tasks needs class weights by task, such "
                f"as class_weight={{{task_names[0]!r}: {class_weight!r}}}. "
                f"Received: class_weight={class_weight!r}, and the model has "
                f"the tasks {list(task_names)}."
            )
        return {}, class_weight
    unknown = [key for key in class_weight if key not in (task_names or ())]
    if unknown:
        raise ValueError(
            "The keys of `class_weight` must be tasks of the model, which has "
            f"the tasks {list(task_names or ())}. Received unknown keys: "
            f"{unknown}"
        )
    return {
        name: _check_classes(name, weights)
        for name, weights in class_weight.items()
    }, None


def _check_classes(name, weights):
    valid = isinstance(weights, dict) and all(
        _is_class(key) and isinstance(value, (int, float)) and value >= 0
        for key, value in weights.items()
    )
    if not valid:
        raise ValueError(
            f"The class weights of the task {name!r} must be a dict from class "
            "indices (integers) to weights that are not negative. Received: "
            f"{weights!r}"
        )
    return {int(key): float(value) for key, value in weights.items()}


def _is_class(key):
    return not isinstance(key, (str, bool)) and int(key) == key and key >= 0
