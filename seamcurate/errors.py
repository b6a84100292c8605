"""What can go wrong, as one tree. Each message says what is wrong, where, and what to do.

    SeamcurateError
    ├── SourceError      rows cannot be read as asked
    ├── RecipeError      a recipe does not say what can be done
    ├── StepError        a step lacks what it needs
    ├── ModelError       a model cannot be loaded or cannot answer
    ├── BudgetError      going on would cost more than may be spent
    ├── StoreError       a store cannot be opened, read or written
    │   ├── StaleError       columns made by another configuration than the one asked for
    │   ├── DamagedError     a shard is not the file that was written
    │   └── BusyError        another run holds the store
    ├── QueryError       SQL that cannot be answered
    ├── ExportError      a split that no trainer would load
    ├── ClusterError     a Ray cluster cannot be used
    ├── TrainError       training that cannot start or go on
    ├── StudyError       measurements that cannot be read as asked
    └── HubError         the Hub cannot be asked, or what it holds cannot be used

All of them are the user's to mend: the command line prints the message alone and exits with 2.
"""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an exception's message that is not blank, or the exception's type where all are.

    Example:
        >>> first_line(ValueError("no such column\nhint: rename one"))
        'no such column'
        >>> first_line(EOFError())
        'EOFError'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def typed_line(error: BaseException) -> str:
    """Return the first line of an exception's message behind the exception's type.

    Example:
        >>> typed_line(KeyError("rate"))
        "KeyError: 'rate'"
        >>> typed_line(EOFError())
        'EOFError'
    """
    kind, line = type(error).__name__, first_line(error)
    return line if line == kind else f"{kind}: {line}"


class SeamcurateError(Exception):
    """Stand at the root: catch this to catch everything seamcurate raises on purpose."""


class SourceError(SeamcurateError):
    """Rows cannot be read as asked."""


class RecipeError(SeamcurateError):
    """A recipe does not say what can be done."""


class StepError(SeamcurateError):
    """A step lacks what it needs."""


class ModelError(SeamcurateError):
    """A model cannot be loaded or cannot answer."""


class BudgetError(SeamcurateError):
    """Going on would cost more than may be spent."""


class StoreError(SeamcurateError):
    """A store cannot be opened, read or written."""


class StaleError(StoreError):
    """Columns were made by another configuration than the one asked for."""


class DamagedError(StoreError):
    """A shard is not the file that was written."""


class BusyError(StoreError):
    """Another run holds the store."""


class QueryError(SeamcurateError):
    """SQL that cannot be answered."""


class ExportError(SeamcurateError):
    """A split that no trainer would load."""


class ClusterError(SeamcurateError):
    """A Ray cluster cannot be used."""


class TrainError(SeamcurateError):
    """Training that cannot start or go on."""


class StudyError(SeamcurateError):
    """Measurements cannot be read as asked."""


class HubError(SeamcurateError):
    """The Hub cannot be asked, or what it holds cannot be used."""
