"""The sections of the report, one module for one or two of them, and their order."""

from collections.abc import Sequence

from dilated_seg.report.blocks import Section
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.sections import claims as claim_section
from dilated_seg.report.sections import classes, cost, images, pairs, protocol, receptive_fields, result, strata, variance


def build_sections(
    comparison: Comparison, missing: Sequence[str], claims: Sequence[Claim], commands: Sequence[str]
) -> list[Section]:  # fmt: skip
    """Build the sections of a report, in their order; those that have nothing to show are left out."""
    sections = [
        result.build_section(comparison, missing, images.build_blocks(comparison)),
        claim_section.build_section(comparison, claims),
        pairs.build_section(comparison),
        variance.build_section(comparison),
        classes.build_iou_section(comparison),
        classes.build_confusion_section(comparison),
        strata.build_object_section(comparison),
        strata.build_boundary_section(comparison),
        strata.build_difficulty_section(comparison),
        receptive_fields.build_section(comparison, claims),
        cost.build_section(comparison),
        protocol.build_curve_section(comparison),
        protocol.build_setting_section(comparison),
        protocol.build_protocol_section(comparison, commands),
    ]
    return [section for section in sections if section and section.blocks]
