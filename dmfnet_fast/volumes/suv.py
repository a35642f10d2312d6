"""Standardized uptake value by body weight, where a PET header says enough."""

from __future__ import annotations

from datetime import datetime, timedelta

from dmfnet_fast.errors import VolumeError
from dmfnet_fast.volumes.elements import Elements


def suv_factor(header: Elements) -> tuple[float, str] | str:
    """What takes a PET's values to SUV (g/ml), or why that is unknown.

    Values in Bq/ml are multiplied by weight over the dose that was left when decay correction refers to, after the
    Quantitative Imaging Biomarkers Alliance. Values that are SUV already have the factor 1.

    Returns:
        The factor and a sentence that says how it came about, or the reason why there is none.
    """
    units = header.text("Units").upper()
    if units == "GML" and header.text("SUVType").upper() in ("", "BW"):
        return 1.0, "values are SUV (body weight)"
    if units != "BQML":
        return f"its values are in {units or 'unknown units'}, not in Bq/ml"
    corrections = header.text("CorrectedImage").upper().split("\\")
    if not {"ATTN", "DECY"} <= set(corrections):
        return "it is not corrected for attenuation and decay"
    try:
        return _from_activity(header)
    except VolumeError:
        return "weight, dose or times in it are damaged"


def _from_activity(header: Elements) -> tuple[float, str] | str:
    dose_item = header.item("RadiopharmaceuticalInformationSequence")
    weight = header.number("PatientWeight")
    if dose_item is None or not weight or weight < 0:
        return "it says no weight or no dose"
    dose, half_life = dose_item.number("RadionuclideTotalDose"), dose_item.number("RadionuclideHalfLife")
    if not dose or dose < 0 or not half_life or half_life < 0:
        return "it says no dose or no half-life"
    correction = header.text("DecayCorrection").upper()
    if correction not in ("START", "ADMIN"):
        return "it does not say to which time its decay was corrected"
    elapsed = 0.0
    if correction == "START":
        seconds = _elapsed(header, dose_item)
        if seconds is None:
            return "it does not say when the tracer was given or the scan began"
        elapsed = seconds
    left = dose * 2 ** (-elapsed / half_life)
    # A dose in MBq, or a weight in g, is a thousand times or more off.
    if not 1e5 < dose < 1e11 or not 0.3 < weight < 500 or not 0 <= elapsed < 10 * half_life:
        return "its weight, dose or times are implausible"
    return weight * 1000 / left, f"values are SUV (body weight): {left / 1e6:.1f} MBq left after {elapsed / 60:.0f} min"


def _elapsed(header: Elements, dose_item: Elements) -> float | None:
    """Seconds from giving the tracer to the time that decay is corrected to: the series', unless that is later than
    the image's own, as it is in series that were processed again."""
    date = header.text("SeriesDate")
    acquired = _moment(header.text("AcquisitionDate") or date, header.text("AcquisitionTime"))
    start = _moment(date, header.text("SeriesTime"))
    if start is None or (acquired is not None and start > acquired):
        start = acquired
    if start is None:
        return None
    given = _moment(
        dose_item.text("RadiopharmaceuticalStartDateTime")[:8], dose_item.text("RadiopharmaceuticalStartDateTime")[8:]
    )
    if given is None:
        given = _moment(start.strftime("%Y%m%d"), dose_item.text("RadiopharmaceuticalStartTime"))
        if given is not None and given > start:
            given -= timedelta(days=1)  # past midnight
    return None if given is None else (start - given).total_seconds()


def _moment(date: str, time: str) -> datetime | None:
    """DICOM's date and time; offsets from UTC are the same in one header and are left out."""
    time = time.split("+")[0].split("-")[0]
    whole, _, part = time.partition(".")
    try:
        return datetime.strptime(f"{date}{whole}.{part or '0'}", "%Y%m%d%H%M%S.%f")
    except ValueError:
        return None
