"""Days of events as Mixpanel exports them: about 0.8 KB a line, mixed types, nested values, a few duplicates."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

FIRST_DAY = date(2024, 1, 1)
EVENTS = {
    "$mp_web_page_view": 30,
    "Page Viewed": 20,
    "Button Clicked": 15,
    "Product Viewed": 12,
    "Added to Cart": 8,
    "Order Placed": 4,
    "Search": 5,
    "Signed up": 1,
    "Überweisung getätigt": 1,
    "Feature Used": 4,
}
PLACES = [
    ("Berlin", "Berlin", "DE"),
    ("München", "Bayern", "DE"),
    ("New York", "New York", "US"),
    ("東京", "東京都", "JP"),
]
DUPLICATES = 0.003


def day_path(folder: Path, day: date) -> Path:
    return folder / f"{day}.jsonl.gz"


def lines(day: date, events: int) -> Iterator[bytes]:
    """`events` lines of one day, the same for the same day and number."""
    rng = random.Random(f"{day}/{events}")
    start_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    names = rng.choices(list(EVENTS), list(EVENTS.values()), k=events)
    earlier: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        if earlier and rng.random() < DUPLICATES:
            event = rng.choice(earlier)
            event["properties"]["mp_processing_time_ms"] += rng.randrange(-60_000, 60_000)
        else:
            event = _event(rng, name, start_ms + 86_400_000 * number // events)
            if rng.random() < 0.01:
                earlier.append(event)
        yield json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _event(rng: random.Random, name: str, time_ms: int) -> dict[str, Any]:
    user = int(200_000 * rng.random() ** 2)
    device = f"{user * 2654435761 & 0xFFFFFFFF:08x}-77f0-4a3b-9d2e-{user:012x}"
    city, region, country = PLACES[user % len(PLACES)]
    properties: dict[str, Any] = {
        "time": time_ms,
        "distinct_id": f"user_{user}" if user % 5 else f"$device:{device}",
        "$insert_id": f"{rng.getrandbits(128):032x}",
        "mp_processing_time_ms": time_ms + rng.randrange(90_000),
        "$city": city,
        "$region": region,
        "mp_country_code": country,
        "$device_id": device,
        "mp_lib": "web",
        "$lib_version": f"2.{user % 60}.0",
        "$mp_api_endpoint": "api-js.mixpanel.com",
        "$mp_api_timestamp_ms": time_ms + rng.randrange(9_000),
        "$browser": rng.choice(("Chrome", "Safari", "Firefox", "Edge")),
        "$browser_version": 100 + user % 25,
        "$current_url": f"https://www.example.com/{name.replace(' ', '-')}/{user:x}?ref={user % 97}&utm_source=nl",
        "$initial_referrer": "https://www.google.com/" if user & 4 else "$direct",
        "$initial_referring_domain": "www.google.com" if user & 4 else "$direct",
        "$screen_height": 1080,
        "$screen_width": 1920,
        "utm_source": None if user & 8 else "newsletter",
        "utm_campaign": None if user & 8 else "spring sale 2024",
        "Page Title": f"Welcome – Größe {user % 500}",
        "plan": rng.choice(("free", "pro", 3, None)),
        "Plan": rng.random() < 0.5,
        "load_ms": round(rng.random() * 3000, 2),
    }
    if user % 5:
        properties["$user_id"] = f"user_{user}"
    if name in ("Product Viewed", "Added to Cart", "Order Placed"):
        amount = round(rng.random() * 300, 2)
        properties["amount"] = amount if rng.random() < 0.97 else str(amount)
        properties["items"] = [
            {
                "sku": f"SKU-{rng.randrange(99_999):05d}",
                "quantity": rng.randrange(1, 5),
                "price": round(rng.random() * 90, 2),
            }
            for _ in range(rng.randrange(1, 5))
        ]
    elif name == "Search":
        properties["query"] = rng.choice(("red shoes", "größe 42", "靴", "a,b;c\ttab", 'say "hi" 😀'))
        properties["filters"] = {"brand": ["x", "y"], "price": {"min": rng.randrange(50), "max": 100}}
    elif name == "Feature Used":
        properties[f"feature_{user % 40}"] = rng.choice((True, False, "on", 1, 2.5))
        properties["context"] = {"team": {"id": user % 99, "name": f"Team {user % 99}"}, "flags": [1, 2, 3]}
    return {"event": name, "properties": properties}


def write_day(folder: Path, day: date, events: int) -> Path:
    path = day_path(folder, day)
    if not path.exists():
        unfinished = path.with_suffix(".part")
        with gzip.GzipFile(unfinished, "wb", 6, mtime=0) as file:
            for line in lines(day, events):
                file.write(line)
        unfinished.rename(path)
    return path


def write_days(folder: Path, days: int, events: int) -> list[Path]:
    """The files of `days` days from FIRST_DAY on, `events` a day; made only where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        made = [pool.submit(write_day, folder, FIRST_DAY + timedelta(days=n), events) for n in range(days)]
        return [future.result() for future in made]


if __name__ == "__main__":
    write_days(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
