import tensorflow as tf

# Elements of a gradient. A larger one is not worth a copy.
STACKED_UP_TO = 2**16


class HeadGradients:
    """The gradients of variables that one task each uses.

    Heads are alike, mostly. Small gradients of one shape are stacked, so that
    one operation looks at those of all tasks: one by one, forty heads take
    more operations than the rest of a step.

    Args:
        by_task: List over the tasks of dicts from a key to a gradient.
    """

    def __init__(self, by_task):
        self.num_tasks = len(by_task)
        alike = {}
        for task, gradients in enumerate(by_task):
            for key, gradient in gradients.items():
                gradient = tf.convert_to_tensor(gradient)
                size = gradient.shape.num_elements()
                kind = key
                if size is not None and size <= STACKED_UP_TO:
                    kind = (tuple(gradient.shape), gradient.dtype)
                alike.setdefault(kind, []).append((task, key, gradient))
        # Tuples of tasks, keys and the gradients, `[len(tasks), ...]`.
        self.stacks = []
        for members in alike.values():
            tasks, keys, gradients = zip(*members, strict=True)
            stacked = (
                tf.expand_dims(gradients[0], 0)
                if len(gradients) == 1
                else tf.stack(gradients)
            )
            self.stacks.append((tasks, keys, stacked))

    def finite(self):
        """Whether all gradients of a task are finite, booleans `[num_tasks]`.

        A sum of squares takes one pass where testing each element takes three.
        It overflows on gradients that are huge but finite, so only its "no" is
        looked into.
        """
        if not self.stacks:
            return tf.fill([self.num_tasks], True)
        stacks = [stacked for _, _, stacked in self.stacks]
        finite = tf.math.is_finite(
            self._sum_by_task([squares(stacked) for stacked in stacks])
        )

        def check_each():
            bad = [~tf.math.is_finite(stacked) for stacked in stacks]
            counts = [
                tf.reduce_sum(tf.cast(b, tf.float32), rest_of_axes(b))
                for b in bad
            ]
            return tf.equal(self._sum_by_task(counts), 0)

        return tf.cond(tf.reduce_all(finite), lambda: finite, check_each)

    def _sum_by_task(self, parts):
        tasks = [task for tasks, _, _ in self.stacks for task in tasks]
        return tf.math.unsorted_segment_sum(
            tf.concat(parts, 0), tasks, self.num_tasks
        )

    def where(self, live):
        """Dict from key to the gradient, or to 0 for tasks that are not live.

        Args:
            live: Boolean tensor, `[num_tasks]`.
        """
        found = {}
        for tasks, keys, stacked in self.stacks:
            flags = live
            if tasks != tuple(range(self.num_tasks)):
                flags = tf.gather(live, tasks)
            flags = tf.reshape(flags, [-1] + [1] * (stacked.shape.rank - 1))
            # Not a product: 0 times NaN is NaN.
            kept = tf.where(flags, stacked, tf.zeros([], stacked.dtype))
            found.update(zip(keys, tf.unstack(kept), strict=True))
        return found


def squares(stacked):
    """Sums of squares along all axes but the first, in float32."""
    if stacked.shape[0] == 1:
        # Fused, which counts where a gradient is large.
        return tf.cast(tf.reshape(tf.nn.l2_loss(stacked), [1]), tf.float32)
    stacked = tf.cast(stacked, tf.float32)
    return tf.reduce_sum(stacked * stacked, rest_of_axes(stacked))


def rest_of_axes(tensor):
    return list(range(1, tensor.shape.rank))
