"""Receptive fields: theoretical, effective, and the accuracy of predictions with limited context.

theory.py computes them from a network's operations (trace.py); gradient.py and grey.py measure a trained network; record.py
stores the measurements in the run, and plots.py draws them.
"""

from dilated_seg.analysis.receptive_field.gradient import accumulate_field as accumulate_field
from dilated_seg.analysis.receptive_field.gradient import effective as effective
from dilated_seg.analysis.receptive_field.gradient import side_of as side_of
from dilated_seg.analysis.receptive_field.grey import RADII as RADII
from dilated_seg.analysis.receptive_field.grey import Context as Context
from dilated_seg.analysis.receptive_field.grey import context as context
from dilated_seg.analysis.receptive_field.record import Measured as Measured
from dilated_seg.analysis.receptive_field.record import MeasurementProtocol as MeasurementProtocol
from dilated_seg.analysis.receptive_field.record import read as read
from dilated_seg.analysis.receptive_field.record import write as write
from dilated_seg.analysis.receptive_field.theory import WIDEST as WIDEST
from dilated_seg.analysis.receptive_field.theory import centre as centre
from dilated_seg.analysis.receptive_field.theory import format_side as format_side
from dilated_seg.analysis.receptive_field.theory import logits_box as logits_box
from dilated_seg.analysis.receptive_field.theory import logits_side as logits_side
from dilated_seg.analysis.receptive_field.theory import of_logits as of_logits
from dilated_seg.analysis.receptive_field.theory import side as side
from dilated_seg.analysis.receptive_field.theory import stride as stride
from dilated_seg.analysis.receptive_field.theory import widths as widths
from dilated_seg.analysis.receptive_field.trace import Trace as Trace
from dilated_seg.analysis.receptive_field.trace import last as last
