"""The dense CRF and the permutohedral lattice that it filters with."""

from dilated_seg.crf.dense_crf import DenseCRF

__all__ = ["DenseCRF"]
