"""The command's streams, progress line and pictures."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading

import pytest

from amqpws_async.cli.histogram import histogram, quantile
from amqpws_async.cli.interruption import Interruption
from amqpws_async.cli.streams import Lines, Output, read_all
from amqpws_async.cli.terminal import Progress, bar, duration, rate, size


class Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    encoding = "utf-8"

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Ascii(io.StringIO):
    encoding = "ascii"


# --- streams --------------------------------------------------------------------------------------


def test_cancelled_line_is_not_lost() -> None:
    """A wait for a line that is cancelled leaves it for the next."""
    reading, writing = os.pipe()

    async def take() -> list[bytes]:
        lines = Lines(reading)
        os.write(writing, b"on")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(lines)
        os.write(writing, b"e\ntwo")
        os.close(writing)
        return [line async for line in lines]

    assert asyncio.run(take()) == [b"one", b"two"]
    os.close(reading)


def test_input_from_a_regular_file_or_nothing(tmp_path: object) -> None:
    """What no selector takes is read all the same."""
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(__file__, os.O_RDONLY)
    try:
        assert asyncio.run(read_all(null)) == b""
        assert asyncio.run(read_all(file)).startswith(b'"""The command\'s streams')
    finally:
        os.close(null)
        os.close(file)


def test_output_larger_than_the_pipe_waits_for_its_reader() -> None:
    """All of it arrives in order, and the loop goes on meanwhile."""
    reading, writing = os.pipe()
    data = bytes(range(256)) * 4096  # 1 MiB
    taken: list[bytes] = []
    turns = 0

    def drain() -> None:
        while part := os.read(reading, 65536):
            taken.append(part)

    async def write() -> None:
        nonlocal turns
        writer = asyncio.get_running_loop().create_task(Output(writing).write(data))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not writer.done()  # the pipe is full, and we are here
        reader = threading.Thread(target=drain)
        reader.start()
        await writer
        os.close(writing)
        reader.join()

    asyncio.run(write())
    os.close(reading)
    assert b"".join(taken) == data


def test_work_after_a_signal_is_not_begun() -> None:
    """A signal that came while something closed keeps the next part from starting."""
    begun = False

    async def part() -> None:
        nonlocal begun
        begun = True

    async def command() -> None:
        interruption.signal = signal.SIGINT
        await interruption.work(part())

    interruption = Interruption()
    asyncio.run(interruption.guard(command()))
    assert not begun


def test_second_signal_ends_work_that_does_not_end_by_itself() -> None:
    """The part is cancelled once by each signal, and the command then ends as cancelled."""
    cancelled = 0

    async def part() -> None:
        nonlocal cancelled
        while cancelled < 2:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
        raise asyncio.CancelledError

    async def command() -> None:
        await interruption.work(part())
        pytest.fail("the command went on after the second signal")

    interruption = Interruption()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interruption.guard(command()))
    assert (cancelled, interruption.signal) == (2, signal.SIGTERM)


# --- progress ---------------------------------------------------------------------------------------


def test_progress_is_cleared_at_the_end() -> None:
    """Nothing of the line is left, whatever the last text was."""
    screen = Screen(terminal=True)

    async def work() -> None:
        async with Progress(screen, lambda: "x" * 500, delay=0):
            while not screen.getvalue():
                await asyncio.sleep(0)

    asyncio.run(work())
    shown = screen.getvalue()
    assert shown.endswith("\r\x1b[K")
    assert max(map(len, shown.split("\r\x1b[K"))) < 500  # cut to the width of the terminal


def test_progress_elsewhere_is_sparse_or_nothing() -> None:
    """A log file gets whole lines if it asks for them, and never control characters."""
    log, silent = Screen(terminal=False), Screen(terminal=False)

    async def work() -> None:
        async with Progress(log, lambda: "half", delay=0, sparse=60), Progress(silent, lambda: "half", delay=0):
            while not log.getvalue():
                await asyncio.sleep(0)

    asyncio.run(work())
    assert log.getvalue() == "half\n"
    assert silent.getvalue() == ""


def test_progress_to_a_stream_that_broke_is_told_unless_something_else_failed() -> None:
    """The failure of the line never hides that of the work."""

    class Broken(Screen):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    async def work(error: Exception | None) -> None:
        async with Progress(Broken(terminal=False), lambda: "half", delay=0, sparse=60) as progress:
            assert progress._task is not None
            await asyncio.wait({progress._task})
            if error is not None:
                raise error

    with pytest.raises(BrokenPipeError):
        asyncio.run(work(None))
    with pytest.raises(KeyError):
        asyncio.run(work(KeyError()))


# --- numbers and pictures -----------------------------------------------------------------------------


def test_bar_is_exact_to_an_eighth_and_plain_where_it_must_be() -> None:
    """Block characters where the encoding has them."""
    assert bar(1.0, 4, Screen(terminal=True)) == "████"
    assert bar(0.5 + 1 / 32, 4, Screen(terminal=True)) == "██▏"
    assert bar(0.0, 4, Screen(terminal=True)) == ""
    assert bar(0.5, 4, Ascii()) == "##"


def test_numbers_are_written_for_people() -> None:
    """Units change where the numbers would get long."""
    assert [rate(10_000, 0.5), rate(1, 0)] == ["20,000/s", "-/s"]
    assert [size(0), size(1023), size(1536), size(5 * 2**20), size(3 * 2**30), size(2**50)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "1048576.0 GiB",
    ]
    assert [duration(0.000314), duration(0.0314), duration(0.9994), duration(1.25)] == [
        "0.314 ms",
        "31.4 ms",
        "999 ms",
        "1.25 s",
    ]


def test_quantile_is_the_nearest_rank() -> None:
    """Never a value that was not measured."""
    values = [1.0, 2.0, 3.0, 4.0]
    assert [quantile(values, fraction) for fraction in (0.0, 0.5, 0.51, 0.99, 1.0)] == [1.0, 2.0, 3.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "values", [[0.001], [0.001] * 500, [0.0001 * n for n in range(1, 200)], [1e-9, 10.0], [0.0, 0.0], [3600.0, 7200.0]]
)
def test_histogram_counts_every_value_in_a_few_lines(values: list[float]) -> None:
    """Whatever the spread, the rows are few, and their counts add up."""
    rows = histogram(sorted(values), Screen(terminal=True))
    assert 1 <= len(rows) <= 12
    assert sum(int(row.rsplit(None, 1)[1].replace(",", "")) for row in rows) == len(values)
    assert max(row.count("█") for row in rows) == 40


def test_histogram_has_the_slowest_hundredth_in_a_row_of_its_own() -> None:
    """A single slow message does not flatten the rest."""
    rows = histogram([0.001] * 99 + [0.002] * 100 + [5.0], Screen(terminal=True))
    assert rows[-1].lstrip().startswith("over 2")
    assert rows[-1].endswith(" 1")
