"""Trials of a method's options: which values, in which order, by which process, and with what results.

The trials of a study are kept in a database: SQLite in the run's folder, or a server that several processes share. The
values of trial n depend only on the seed, n and the results of the finished trials, and every change to the database is
one transaction. So a search that is killed at any moment continues where it was, and what a single process finds does
not depend on whether it was killed. A process claims a trial before running it, by a lock that the server releases when
the process ends, however it ends: no trial is run by two processes, and one whose process was killed is run by another.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import shutil
import sqlite3
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from pydantic import ValidationError

from gcp.errors import UserError, is_out_of_memory, without_passwords
from gcp.search.options import Range, Search
from gcp.seeds import Stream, hash_seed

FILE = "trials.db"  # in the run's folder
POLL_S = 2.0  # seconds between checks of the trials that other processes run
CONNECT_S = 10  # seconds that a server has to answer
LOCK_POLL_S = 0.1
MOST_FIRST = 10  # maximum number of random trials before a sampler uses the finished ones
TABLES = "gcp search, tables"  # the name of the lock under which tables are created
WHY = 300  # characters kept of a failed trial's message

DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
# A lock belongs to its connection. The first statement makes PostgreSQL notice within a minute that a machine is gone,
# and keeps MySQL from closing an idle connection.
LOCKS = {
    "postgresql": (
        "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false), "
        "set_config('tcp_keepalives_count', '3', false)",
        "SELECT pg_try_advisory_lock(:key)",
    ),
    "mysql": ("SET SESSION wait_timeout = 31536000", "SELECT GET_LOCK(:key, 0)"),
}

T = TypeVar("T")
Values = Dict[str, Any]


@dataclass
class Trial:
    """One trial, which to a method looks like a run, with a folder and a log of its own.

    `images` counts the images that it uses, by purpose.
    """

    number: int
    values: Values
    path: Path
    name: str
    images: Counter = field(default_factory=Counter)
    report: Optional[Callable[[int, Optional[float]], None]] = None  # of (step, validation loss), if it can end early
    write: Callable[..., None] = lambda event, **values: None
    shared: Optional[Path] = None  # the run's, that of its dense network

    def log(self, event: str, **values: Any) -> None:
        """Add an event to the run's log, under the trial's name."""
        said = {"stage": f"{self.name}-{values['stage']}"} if "stage" in values else {"trial": self.name}
        self.write(event, **{**values, **said})


# Runs a trial with its values: any result, and its validation loss.
Attempt = Callable[[Trial], Tuple[T, float]]


@dataclass(frozen=True)
class Tuner:
    """Searches the options in `space`, starting with the configuration's own values (`first`).

    `folder` is the run's, `shared` that of its dense network. `log` gets a line for each trial. `seconds` are the
    durations of this process's trials so far.
    """

    search: Search
    space: Dict[str, Range]
    first: Values
    seed: int
    folder: Path
    log: Callable[..., None]
    shared: Optional[Path] = None
    seconds: List[float] = field(default_factory=list)

    def best(self, attempt: Attempt, iteration: int = 0, later: int = 0) -> Tuple[T, Trial, Dict[str, Any]]:
        """The result of `attempt` for the best values, their trial, and all trials as a record lists them.

        `iteration` counts from 1 where a method's iterations are searched; `later` is the number of trials in later
        iterations. `attempt` keeps what it computes in the trial's folder: for the best trial it is called once more,
        to read it back. A DivergedError, values that do not fit together or a lack of memory end the trial but not the
        search. UserError: every trial failed, or the storage cannot be used.
        """
        from gcp.train.distributed import process_group

        name, group = f"iteration {iteration}" if iteration else "run", process_group()
        folder = self.folder / f"search-{name.replace(' ', '-')}"
        with contextlib.ExitStack() as stack:
            study = stack.enter_context(self._study(name, iteration)) if group.rank == 0 else None
            while (claimed := group.broadcast(lambda: study.claim())) is not None:
                trial = self._trial(folder, name, **claimed)
                if group.rank == 0:
                    print(study.progress(trial, later), file=sys.stderr, flush=True)
                if self.search.pruner != "none":
                    trial.report = _reporting(lambda *at: group.broadcast(lambda: study.should_end(*at)))
                began = time.monotonic()
                state, value, why = _tried(attempt, trial, group.world_size)
                self.seconds.append(time.monotonic() - began)
                n_images = sum(trial.images.values())
                facts = {"trial": trial.number, "state": state, "value": value, "images": n_images, "why": why}
                self.log("trial", search=name, **facts, values=trial.values)
                if group.rank == 0:
                    study.tell(state, value, n_images, why)
                    _remove_others(folder, study.best_number)
            rows = group.broadcast(lambda: study.rows())
        chosen = min((row for row in rows if row["value"] is not None), key=_by_value, default=None)
        if chosen is None:
            why = next((row["why"] for row in rows if row["why"]), None)
            raise UserError(
                f"search.parameters: all {len(rows)} trials of {name} failed, the first with: {why}; give other ranges",
                key="search.failed",
            )
        trial = self._trial(folder, name, chosen["trial"], chosen["values"])
        result, value = attempt(trial)
        if value != chosen["value"]:
            print(
                f"warning: trial {trial.number + 1} of {name}, run on another machine, came to {chosen['value']:.6g} "
                f"there and {value:.6g} here; machines that share a search should be alike",
                file=sys.stderr,
            )
        space = {key: tried.model_dump(mode="json", exclude_defaults=True) for key, tried in self.space.items()}
        return result, trial, {"name": name, "best": trial.number, "parameters": space, "trials": rows}

    def _study(self, name: str, iteration: int) -> contextlib.AbstractContextManager[_Study]:
        url = None if self.search.storage is None else server(self.search.storage)
        database = _Database(url, self.folder / FILE)
        return _opened(database, f"{self.folder.name}, {name}", self, Stream.SEARCH.seed(self.seed, iteration))

    def _trial(self, folder: Path, name: str, trial: int, values: Values) -> Trial:
        path = folder / f"trial-{trial:04d}"
        path.mkdir(parents=True, exist_ok=True)
        name = f"{path.parent.name}-{path.name}"
        return Trial(trial, values, path, name, write=self.log, shared=self.shared)


def check(search: Search) -> None:
    """Raise a UserError if the server that is to keep the trials cannot be reached, or its driver is missing."""
    if search.trials and search.storage is not None:
        with _Database(server(search.storage)).held(TABLES):
            pass


def server(storage: str) -> sqlalchemy.URL:
    """A server's URL, with the driver that the project installs. UserError: it is not a database's URL."""
    try:
        url = sqlalchemy.make_url(storage)
        return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        wrong = f"{without_passwords(storage)} is not a database URL"
        fix = "it should look like postgresql://USER@HOST/DATABASE, with special characters in passwords written as %XX"
        raise UserError(f"search.storage: {wrong}; {fix}", "search.storage") from None


def distribution(tried: Range) -> BaseDistribution:
    """A range or choices as an Optuna distribution."""
    if tried.choices:
        return CategoricalDistribution(tried.choices)
    kind = IntDistribution if tried.is_whole else FloatDistribution
    return kind(tried.low, tried.high, log=tried.log)


def suggest(search: Search, space: Mapping[str, Range], first: Values, seed: int, trials: List) -> Values:
    """The next trial's values, given all existing ones; the first has the configuration's own, if these are allowed."""
    number = len(trials)
    if search.sampler == "grid":
        grid = itertools.product(*(tried.choices for tried in space.values()))
        return dict(zip(space, next(itertools.islice(grid, number, None))))
    if number == 0 and all(tried.holds(first.get(key)) for key, tried in space.items()):
        return {key: first[key] for key in space}
    n_first, seed = max(1, min(MOST_FIRST, search.trials // 2)), hash_seed(seed, number)
    is_random = search.sampler == "random"
    sampler = (
        optuna.samplers.RandomSampler(seed)
        if is_random
        else optuna.samplers.TPESampler(n_startup_trials=n_first, seed=seed)
    )
    # A study in memory: what the sampler draws depends on what it is given here, and on nothing else.
    study = optuna.create_study(sampler=sampler)
    study.add_trials([trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)])
    return study.ask({key: distribution(tried) for key, tried in space.items()}).params


# ---- one trial -----------------------------------------------------------------------------------------------------


def _tried(attempt: Attempt, trial: Trial, world_size: int) -> Tuple[str, Optional[float], Optional[str]]:
    """Run a trial: how it ended, its value if it has one, and why it failed if it did."""
    from gcp.train.optimisers import DivergedError

    try:
        return "complete", attempt(trial)[1], None
    except optuna.TrialPruned:
        return "pruned", None, None
    except (DivergedError, ValidationError) as error:
        why = str(error)
    except Exception as error:
        # With several ranks, a single one may be out of memory; the others would wait for it.
        if world_size > 1 or not is_out_of_memory(error):
            raise
        why = f"not enough memory: {error}"
    return "failed", None, " ".join(why.split())[:WHY]


def _reporting(should_end: Callable[[int, float], bool]) -> Callable[[int, Optional[float]], None]:
    def report(step: int, loss: Optional[float]) -> None:
        if loss is not None and should_end(step, loss):
            raise optuna.TrialPruned

    return report


def _by_value(row: Dict[str, Any]) -> Tuple[float, int]:
    return row["value"], row["trial"]


def _remove_others(folder: Path, best: Optional[int]) -> None:
    """Remove the folders of finished trials except that of the best so far, since networks can be large."""
    for path in folder.glob("trial-*"):
        if best is None or path.name != f"trial-{best:04d}":
            shutil.rmtree(path)


# ---- the database --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Database:
    """A database on a server, or a file in a run's folder, which is locked and so belongs to one process."""

    url: Optional[sqlalchemy.URL] = None
    file: Path = Path(FILE)

    @property
    def text(self) -> str:
        """The server's URL, with its password."""
        return self.url.render_as_string(hide_password=False)

    @property
    def place(self) -> str:
        """The name by which messages refer to the database."""
        return str(self.file) if self.url is None else without_passwords(self.text)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Turn a database's errors into a UserError that contains no password."""
        try:
            yield
        except (
            sqlalchemy.exc.SQLAlchemyError,
            optuna.exceptions.StorageInternalError,
            ImportError,
            RuntimeError,  # tables of another version of Optuna
        ) as error:
            cause = error if isinstance(error, sqlalchemy.exc.SQLAlchemyError) else error.__cause__ or error
            said = " ".join(str(getattr(cause, "orig", None) or cause).split())
            again = "then run the same command again: finished trials are kept"
            if self.url is None and isinstance(cause, sqlalchemy.exc.OperationalError):  # a full disk, for example
                fix = f"free some space, or make the file and its folder writable, {again}"
            elif self.url is None:
                fix = "remove that file, and the search starts afresh"
            elif isinstance(error, ImportError):
                fix = "run `pip install -c constraints.txt '.[search-server]'`"
            else:
                fix = f"make sure that it is running and lets this user in, {again}"
            if self.url is not None and self.url.password:
                said = said.replace(self.url.password, "***")
            wrong = f"{self.place} cannot be used: {said[:WHY]}"
            raise UserError(f"search.storage: {wrong}; {fix}", "search.storage") from None

    def storage(self) -> optuna.storages.RDBStorage:
        """Optuna's storage, with tables that are created if they do not exist."""
        if self.url is None:  # a path in a URL would have to be quoted, which not every reader undoes
            text, how = "sqlite:///trials.db", {"creator": lambda: sqlite3.connect(self.file, timeout=60)}
        else:
            text, how = self.text, {"connect_args": {"connect_timeout": CONNECT_S}, "pool_pre_ping": True}
        with self.held(TABLES):
            return optuna.storages.RDBStorage(text, engine_kwargs=how)

    def lock(self, name: str) -> Optional[Callable[[], None]]:
        """Take a server's lock: a function that releases it, or None if another process holds it."""
        if self.url is None:
            return lambda: None
        kind = self.url.get_backend_name()
        begin, take = LOCKS[kind]
        digest = hashlib.sha256(name.encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True) if kind == "postgresql" else digest.hex()[:32]
        engine = sqlalchemy.create_engine(
            self.url,
            poolclass=sqlalchemy.pool.NullPool,  # so that closing a connection ends it
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": CONNECT_S},
        )
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(engine.connect())
            connection.execute(sqlalchemy.text(begin))
            is_taken = connection.execute(sqlalchemy.text(take), {"key": key}).scalar()
            return stack.pop_all().close if is_taken else None

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold a lock, waiting for it if need be: others hold it only for moments."""
        with self.using():
            while (release := self.lock(name)) is None:
                time.sleep(LOCK_POLL_S)
        try:
            yield
        finally:
            release()


class _Study:
    """A study in a database, and this process's claim on one of its trials."""

    STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}

    def __init__(self, study: optuna.Study, database: _Database, tuner: Tuner, seed: int) -> None:
        self._study, self._database, self._tuner, self._seed = study, database, tuner, seed
        self._claimed: Optional[optuna.Trial] = None
        self._release: Callable[[], None] = lambda: None

    def claim(self) -> Optional[Dict[str, Any]]:
        """The number and values of a trial that this process has claimed; None: all are finished.

        It waits while there is no trial to claim but others are still running some.
        """
        search, space, is_waiting = self._tuner.search, self._tuner.space, False
        while True:
            with self._database.using(), self._database.held(self._study.study_name):
                trials = self._trials()
                for trial in trials:  # first those of processes that were killed
                    if trial.state == TrialState.RUNNING and self._take(trial):
                        # It may have ended, and its lock been released, since the trials were read.
                        if not self._trials()[trial.number].state.is_finished():
                            return {"trial": trial.number, "values": self._values(trial)}
                        self.release()
                if len(trials) < search.trials:
                    values = suggest(search, space, self._tuner.first, self._seed, trials)
                    drawn = {key: distribution(tried) for key, tried in space.items()}
                    self._study.add_trial(
                        optuna.create_trial(state=TrialState.RUNNING, params=values, distributions=drawn)
                    )
                    self._take(self._trials()[len(trials)])
                    return {"trial": len(trials), "values": values}
            n_running = sum(not trial.state.is_finished() for trial in trials)
            if not n_running:
                return None
            if not is_waiting:
                print(f"waiting for trials that other processes are running: {n_running}", file=sys.stderr, flush=True)
            is_waiting = True
            time.sleep(POLL_S)

    def _take(self, trial: optuna.trial.FrozenTrial) -> bool:
        release = self._database.lock(f"{self._study.study_name}, trial {trial.number}")
        if release is not None:
            self._claimed, self._release = optuna.Trial(self._study, trial._trial_id), release
        return release is not None

    def release(self) -> None:
        """Release the claimed trial's lock, if there is one."""
        self._release()
        self._release = lambda: None

    def should_end(self, step: int, value: float) -> bool:
        """Report the claimed trial's value after this many steps, and return whether it should end early."""
        with self._database.using():
            if step not in self._trials()[self._claimed.number].intermediate_values:
                self._claimed.report(value, step)
            return self._claimed.should_prune()

    def tell(self, state: str, value: Optional[float], n_images: int, why: Optional[str]) -> None:
        """Record that the claimed trial has ended, and release it."""
        with self._database.using():
            # Another process may have finished it, if the connection was lost and the lock with it.
            if not self._trials()[self._claimed.number].state.is_finished():
                self._claimed.set_user_attr("images", n_images)
                if why is not None:
                    self._claimed.set_user_attr("why", why)
                self._study.tell(self._claimed, value, state=self.STATES[state])
        self.release()

    @property
    def best_number(self) -> Optional[int]:
        """The number of the best trial so far, if there is one."""
        return min((row for row in self.rows() if row["value"] is not None), key=_by_value, default={}).get("trial")

    def rows(self) -> List[Dict[str, Any]]:
        """The finished trials, as a record lists them."""
        names = {state: name for name, state in self.STATES.items()}
        with self._database.using():
            trials = self._trials()
        return [
            {
                "trial": trial.number,
                "state": names[trial.state],
                "value": trial.value if trial.state == TrialState.COMPLETE else None,
                "images": trial.user_attrs["images"],
                "values": self._values(trial),
                "why": trial.user_attrs.get("why"),
            }
            for trial in trials
            if trial.state.is_finished()
        ]

    def progress(self, trial: Trial, later: int) -> str:
        """A line that says which trial of how many begins, the best so far, and about how much time is left."""
        with self._database.using():
            trials = self._trials()
        n, chosen = self._tuner.search.trials, ", ".join(f"{key}={_short(of)}" for key, of in trial.values.items())
        said = f"search, {self._study.study_name.rpartition(', ')[2]}: trial {trial.number + 1} of {n}, {chosen}"
        done = [t for t in trials if t.state == TrialState.COMPLETE]
        if done:
            best = min(done, key=lambda t: (t.value, t.number))
            said += f"; best {best.value:.4g} in trial {best.number + 1}"
        seconds = sorted([t.duration.total_seconds() for t in done] or self._tuner.seconds)
        if seconds:
            n_running = sum(t.state == TrialState.RUNNING for t in trials)
            n_left = n + later - sum(t.state.is_finished() for t in trials)
            said += f"; about {_time(seconds[len(seconds) // 2] * math.ceil(n_left / max(1, n_running)))} left"
        return said

    def _trials(self) -> List[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _values(self, trial: optuna.trial.FrozenTrial) -> Values:
        return {key: trial.params[key] for key in self._tuner.space}


@contextlib.contextmanager
def _opened(database: _Database, name: str, tuner: Tuner, seed: int) -> Iterator[_Study]:
    """Open the study of this name, or create it. UserError: it belongs to another configuration."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with contextlib.ExitStack() as stack:
        with database.using():
            storage = database.storage()
            stack.callback(storage.engine.dispose)
            stack.callback(storage.remove_session)
            with database.held(name):
                study = optuna.create_study(
                    storage=storage, study_name=name, load_if_exists=True, pruner=_pruner(tuner.search)
                )
                known, about = study.user_attrs.get("about"), _about(tuner)
                if known is None:
                    study.set_user_attr("about", about)
            # A file in a run's folder holds studies of that run only.
            others = optuna.get_all_study_names(storage) if database.url is None else []
            others = [other for other in others if not other.startswith(f"{tuner.folder.name}, ")]
        if others or known not in (None, about):
            wrong = f"{database.place} holds a search of another configuration, '{others[0] if others else name}'"
            fix = "remove that file" if database.url is None else "name another database, or remove that study"
            raise UserError(f"search.storage: {wrong}; {fix}", "search.configuration")
        found = _Study(study, database, tuner, seed)
        stack.callback(found.release)
        yield found


def _about(tuner: Tuner) -> Dict[str, Any]:
    """What two processes must agree on to share a study; the run's name contains the configuration's fingerprint."""
    keys = {"trials", "sampler", "pruner", "scope"}
    space = {key: tried.model_dump(mode="json") for key, tried in tuner.space.items()}
    first = {key: tuner.first.get(key) for key in space}
    own = tuner.search.model_dump(mode="json", include=keys)
    return {"run": tuner.folder.name, "seed": tuner.seed, **own, "parameters": space, "first": first}


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    n_first = max(1, min(MOST_FIRST // 2, search.trials // 3))
    return {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=n_first),
        "halving": optuna.pruners.SuccessiveHalvingPruner,
    }[search.pruner]()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
