"""A DAG file for Airflow that runs the views of a repository by its schedules, instead of `fs schedule run`.

It says no more than what Airflow's versions 2 and 3 both read. Every view is a DAG of one task, `fs
materialize-incremental` up to the boundary, and the next is not begun before the last has ended.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from feature_store.expressions.instants import SECOND
from feature_store.pipelines.due import Retries, Scheduled

_CRON = {"daily": "0 0 * * *", "hourly": "0 * * * *"}

_HEAD = '''"""The views of {project} by their schedules. Written by: fs schedule export airflow"""

from datetime import timedelta

import pendulum

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG
try:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
except ImportError:
    from airflow.operators.bash import BashOperator
    from airflow.sensors.time_delta import TimeDeltaSensor

RETRIES = {{
    "retries": {retries},
    "retry_delay": timedelta(seconds={wait}),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(hours=1),
}}
'''
_DAG = """
with DAG(
    {dag!r},
    schedule={cron!r},
    start_date=pendulum.datetime(2020, 1, 1, tz={timezone!r}),
    catchup=False,  # one run brings the view up to its boundary: what was missed before is in it
    max_active_runs=1,
    default_args=RETRIES,
    tags=["feature_store", {project!r}],
):
    run = BashOperator(
        task_id="materialize",
        bash_command={command!r},
    )
"""
_DELAY = """    wait = TimeDeltaSensor(task_id="delay", delta=timedelta(seconds={seconds}), mode="reschedule")
    wait >> run
"""


def dag_file(
    items: Iterable[Scheduled], project: str, root: Path, settings: Path | None, program: str, retries: Retries
) -> str:
    """The text of the file. `program` is the command `fs` as Airflow's workers find it, `root` the repository there,
    `settings` another settings file than the repository's."""
    place = ["-c", str(root), *(["-f", str(settings)] if settings else [])]
    text = _HEAD.format(project=project, retries=retries.attempts - 1, wait=retries.wait // SECOND)
    for item in items:
        base = shlex.join([*shlex.split(program), *place, "materialize-incremental"])
        # With a delay the run comes so long after the boundary that the DAG is scheduled at.
        delay = f" + macros.timedelta(seconds={item.delay // SECOND})" if item.delay else ""
        end = f"{{{{ ((data_interval_end or dag_run.run_after){delay}).in_timezone('UTC').isoformat() }}}}"
        text += _DAG.format(
            dag=f"{project}__{item.view}",
            cron=_CRON.get(item.schedule.every, item.schedule.every),
            timezone=item.schedule.timezone,
            project=project,
            command=f'{base} "{end}" -v {shlex.quote(item.view)}',
        )
        if item.delay:
            text += _DELAY.format(seconds=item.delay // SECOND)
    return text
