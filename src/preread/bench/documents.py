"""Two dozen documents to publish: nine languages, prose, code, tables, logs and chat. No fit has read any of them.

The prose lies in `texts`, the code is preread's own, and the rest is drawn from seeds, so that every installation
has the same. Whoever has better ones names a folder of them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from preread.errors import UsageError

_PROSE: Final = ("en", "uk", "pl", "it", "pt", "ru", "tr", "ko", "nl")
_CODE: Final = (
    ("plan/flow.py", "plan/place.py"),
    ("engine/attention.c",),
    ("codec/symbols.c",),
    ("store/http11.py",),
    ("wire/segment.py", "wire/tokens.py", "wire/digest.py"),
)
_LINES: Final = (60, 90, 120)


@dataclass(frozen=True, slots=True)
class Document:
    """`kind`: prose, code, table, log or chat; `name` says which of these it is."""

    kind: str
    name: str
    text: str


def documents() -> tuple[Document, ...]:
    """The two dozen."""
    root = files("preread")
    prose = [Document("prose", name, root.joinpath(f"bench/texts/{name}.txt").read_text("utf-8")) for name in _PROSE]
    code = [
        Document("code", parts[0], "\n".join(root.joinpath(part).read_text("utf-8") for part in parts))
        for parts in _CODE
    ]
    return (
        *prose,
        *code,
        *_drawn("table", (_orders, _timetable, _measurements)),
        *_drawn("log", (_syslog, _access, _build)),
        *_drawn("chat", (_german, _english, _spanish, _ukrainian)),
    )


def below(folder: Path) -> tuple[Document, ...]:
    """The text files of a folder, and of folders in it, which say what kind they are.

    Raises:
        UsageError: there is none.
    """
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            kind = path.parent.name if path.parent != folder else "text"
            found.append(Document(kind, path.name, path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError):  # a picture
            continue
    if not found:
        raise UsageError(f"{folder} has no text in UTF-8")
    return tuple(found)


Draw = Callable[[random.Random], str]
"""One line."""


def _drawn(kind: str, draws: Sequence[Draw]) -> list[Document]:
    made = []
    for draw, lines in zip(draws, (*_LINES, _LINES[0]), strict=False):
        source = random.Random(f"{kind}/{draw.__name__}")
        text = "\n".join(draw(source) for _ in range(lines))
        made.append(Document(kind, draw.__name__.removeprefix("_"), text))
    return made


def _clock(source: random.Random) -> str:
    return f"{source.randrange(24):02}:{source.randrange(60):02}:{source.randrange(60):02}"


def _orders(source: random.Random) -> str:
    what = source.choice(("Roggenmehl 25 kg", "levure", "sól drobna", "burro", "sésamo", "papel de horno"))
    who = source.choice(("Bäckerei Sommer", "Atelier Roux", "Kowalski i Syn", "Forno Neri", "Pão da Vila"))
    count, cents = source.randint(1, 40), source.randint(95, 9900)
    day = f"2026-{source.randint(1, 12):02}-{source.randint(1, 28):02}"
    total = count * cents / 100
    return f"{source.randint(10_000, 99_999)},{day},{who},{what},{count},{cents / 100:.2f},{total:.2f}"


def _timetable(source: random.Random) -> str:
    stop = source.choice(("Hafen", "Markt", "Klinikum", "Schule Ost", "Friedhof", "Bahnhof", "Am Wehr", "Brauerei"))
    times = [f"{hour}:{source.randrange(60):02}" for hour in sorted(source.sample(range(5, 24), 5))]
    days = source.choice(("Mo–Fr", "Sa", "So", "täglich"))
    return f"| {source.randint(1, 19)} | {stop} | {' | '.join(times)} | {days} |"


def _measurements(source: random.Random) -> str:
    values = "\t".join(f"{source.gauss(mean, mean / 9):.3f}" for mean in (7.2, 21.5, 412.0, 0.83))
    return f"well-{source.randint(1, 12)}\t2025-{source.randint(1, 12):02}-{source.randint(1, 28):02}\t{values}"


def _syslog(source: random.Random) -> str:
    unit = source.choice(("sshd", "cron", "kernel", "nginx", "postgres", "systemd", "dhclient"))
    what = source.choice(
        (
            f"Accepted publickey for deploy from 10.0.{source.randrange(9)}.{source.randrange(255)} port 50212 ssh2",
            f"checkpoint complete: wrote {source.randrange(9000)} buffers ({source.random() * 9:.1f}%)",
            f"eth{source.randrange(3)}: link up, {source.choice((100, 1000, 2500))} Mbps, full-duplex",
            f"session opened for user {source.choice(('anna', 'root', 'backup'))}(uid={source.randrange(2000)})",
            f"renewal in {source.randrange(40_000)} seconds.",
            f"worker {source.randrange(30)} exited with code {source.randrange(3)}, restarting",
        )
    )
    when = f"Mar {source.randint(1, 30):2} {_clock(source)}"
    return f"{when} node{source.randint(1, 5)} {unit}[{source.randrange(9999)}]: {what}"


def _access(source: random.Random) -> str:
    path = source.choice(
        ("/", "/search?q=brot", "/img/logo.svg", "/api/v2/items", "/login", "/robots.txt", "/feed.xml")
    )
    agent = source.choice(("Mozilla/5.0 (X11; Linux x86_64)", "curl/8.5.0", "feedfetcher", "Mozilla/5.0 (iPhone)"))
    status, size = source.choice((200, 200, 200, 304, 404, 301, 500)), source.randrange(90_000)
    address = f"198.51.100.{source.randrange(255)}"
    return f'{address} - - [07/May/2026:{_clock(source)} +0200] "GET {path} HTTP/1.1" {status} {size} "{agent}"'


def _build(source: random.Random) -> str:
    step = source.choice(("CC", "LD", "AR", "GEN", "TEST"))
    name = (
        f"{source.choice(('net', 'core', 'ui', 'db'))}/{source.choice(('socket', 'queue', 'table', 'parser', 'cache'))}"
    )
    if step == "TEST":
        return f"{step:5} {name}_test ... {source.choice(('ok', 'ok', 'ok', 'FAILED'))} ({source.random() * 3:.3f} s)"
    if source.random() < 0.2:
        return (
            f"{name}.c:{source.randrange(900)}:{source.randrange(80)}: warning: unused variable 'n' [-Wunused-variable]"
        )
    return f"{step:5} build/{name}.o"


def _said(source: random.Random, names: Sequence[str], lines: Sequence[str]) -> str:
    line = source.choice(lines).format(n=source.randint(2, 60), t=f"{source.randint(7, 18)}:{source.randrange(60):02}")
    return f"[{_clock(source)}] {source.choice(names)}: {line}"


def _german(source: random.Random) -> str:
    lines = (
        "Wer hat den Schlüssel vom Lager {n}?",
        "ich, bringe ihn um {t} zurück",
        "Bitte denkt an die Stundenzettel, es fehlen noch {n}.",
        "der Kunde aus Halle {n} hat schon wieder angerufen",
        "sag ihm, wir kommen um {t} vorbei, versprochen ist versprochen 😅",
        "Moment, um {t} bin ich doch in der Schulung!",
        "Dann tauschen wir, ich übernehme die Tour mit den {n} Kisten.",
        "Danke dir, hast was gut bei mir",
    )
    return _said(source, ("Jana", "Murat", "Herr Klose", "Pia"), lines)


def _english(source: random.Random) -> str:
    lines = (
        "has anyone seen ticket {n}? customer says the export stops after {n} rows",
        "Reproduced. It is the date column, the parser gives up on 29 February.",
        "lol of course it is",
        "Deploy is planned for {t}, please do not merge anything until then.",
        "merged at {t}, sorry, did not read up 🙈",
        "It is fine, tests are green. I will watch the dashboards for {n} minutes.",
        "p95 went from {n} ms to twice that, is that us?",
        "No, the backup runs at {t}. Look at the disk graph.",
    )
    return _said(source, ("sam", "Priya", "oleg", "Dana K."), lines)


def _spanish(source: random.Random) -> str:
    lines = (
        "¿A qué hora sale el autobús de los niños, a las {t}?",
        "Sí, pero hay que estar {n} minutos antes con la autorización firmada",
        "yo llevo bocadillos para {n}, avisad si hay alergias",
        "Mi hija no puede comer nueces, gracias por preguntar ❤️",
        "Se ha perdido una mochila azul, tiene {n} cromos dentro y son importantes",
        "La tengo yo, estaba debajo del asiento. Os la dejo en conserjería a las {t}.",
        "Menos mal, aquí había un drama jajaja",
        "Recordad que mañana hay reunión a las {t}, faltan {n} familias por confirmar",
    )
    return _said(source, ("Carmen", "Iñaki", "Lucía (mamá de Leo)", "Tutora"), lines)


def _ukrainian(source: random.Random) -> str:
    lines = (
        "Хто сьогодні чергує? Світло обіцяють о {t}",
        "я, але запізнюся хвилин на {n}, затор на мосту",
        "Генератор заправлений, вистачить годин на {n}",
        "Дякую! А води скільки лишилось?",
        "Бутлів {n}, завтра о {t} привезуть ще",
        "У {n} квартирі бабуся просить допомогти з ліками, хто поруч?",
        "Вже йду, куплю дорогою хліба",
        "Ви найкращі 💙",
    )
    return _said(source, ("Оля", "Тарас", "пані Ніна", "Макс"), lines)
