"""Pages about the objects of a registry, one for each class."""

from pages import Pages, arguments_of

HEADINGS = [
    "Formula",
    "When to choose it",
    "Cost and memory",
    "Arguments",
    "Example",
    "Edge cases",
    "Departures",
    "References",
]


class ObjectPages(Pages):
    """A folder of pages, and the classes that they are about.

    Args:
        module: Module of the package, such as `mtlkeras.aggregators`; the
            folder has its name.
        argument: Name of the argument of `compile` that takes its ids.
        base: The class with the arguments that `README.md` explains.
        without_page: Names that the module exports and no page is about.
        without_id: Names of the files of classes that have no id, or none that
            would do by itself.
    """

    def __init__(self, module, argument, base, without_page, without_id=()):
        self.name = module.__name__.rpartition(".")[2]
        super().__init__(self.name)
        self.module = module
        self.argument = argument
        self.base = base
        self.without_id = set(without_id)
        found = {
            getattr(module, name)
            for name in set(module.__all__) - {"get", "ids", *without_page}
        }
        files = {cls.__module__.rpartition(".")[2]: cls for cls in found}
        self.classes = dict(sorted(files.items()))

    def check_complete(self):
        assert set(self.classes) == {*self.module.ids(), *self.without_id}
        self.check_names(self.classes)

    def check_identity(self, page):
        """The page says what its class is and how to get it."""
        cls, text = self.classes[page], self.texts[page]
        assert f"mtlkeras.{self.name}.{cls.__name__}" in text
        if page not in self.without_id:
            assert f'`{self.argument}="{page}"`' in text
            assert type(self.module.get(page)) is cls

    def check_arguments(self, page):
        """The table has the arguments and defaults of the signature."""
        common = arguments_of(self.base)
        if page == "README":
            self.check_defaults(page, common)
            return
        # A class without an `__init__` of its own has the common ones only.
        arguments = arguments_of(self.classes[page])
        own = {k: v for k, v in arguments.items() if k not in common}
        self.check_defaults(page, own)
