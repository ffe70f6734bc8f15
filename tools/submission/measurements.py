"""measurements.json and calibration.md: what is said of the model."""

from __future__ import annotations

from tools.submission.system import FILL_IN

FIELDS = ("input_data_types", "retraining", "starting_weights_filename", "weight_data_types", "weight_transformations")


def describe_model() -> dict[str, str]:
    """The fields of measurements.json for the published INT4 network; what depends on the model begins with FILL IN."""
    return {
        "input_data_types": "int8",
        "retraining": f"{FILL_IN}: yes, or no where the weights are the reference's, quantized",
        "starting_weights_filename": f"{FILL_IN}: the file that the weights were trained or quantized from",
        "weight_data_types": f"{FILL_IN}: such as int4, with int8 in the first convolution",
        "weight_transformations": f"{FILL_IN}: such as symmetric quantization with a scale for each output channel",
    }


CALIBRATION_TEXT = f"""# Calibration

{FILL_IN}: how the weights and the scales of activations were found, on which images, and with which retraining.
"""
