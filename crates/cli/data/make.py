#!/usr/bin/env python3
"""Makes airports.csv, the sample anchors of `anchorhold demo`, from the PyPI package airportsdata.

    python3 -m pip download --no-deps airportsdata==20260905
    python3 make.py airportsdata-20260905-py3-none-any.whl > airports.csv

Rows without a position or with one outside the Earth are left out, feet become meters, and rows
are sorted by ICAO code, so that equal input gives an equal file.
"""

import csv
import io
import sys
import zipfile

METERS_PER_FOOT = 0.3048


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        text = wheel.read("airportsdata/airports.csv").decode("utf-8")
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["icao", "iata", "name", "city", "country", "latitude", "longitude", "height_m", "tags"])
    left_out = 0
    for row in sorted(csv.DictReader(io.StringIO(text)), key=lambda row: row["icao"]):
        latitude, longitude = float(row["lat"]), float(row["lon"])
        height_m = round(float(row["elevation"]) * METERS_PER_FOOT, 1)
        if not (abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0, 0)):
            left_out += 1
            continue
        tags = "iata" if row["iata"] else ""
        out.writerow([
            row["icao"], row["iata"], row["name"], row["city"], row["country"],
            f"{latitude:.6f}".rstrip("0").rstrip("."), f"{longitude:.6f}".rstrip("0").rstrip("."), f"{height_m:g}", tags,
        ])
    print(f"{left_out} rows without a usable position left out", file=sys.stderr)


if __name__ == "__main__":
    main()
