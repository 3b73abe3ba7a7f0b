"""An image as nnU-Net's overlapping tiles, embedded, and decoded anywhere: folds, mirroring, blended tiles.

The logits of a position are the mean, over folds and mirrored passes, of those of the tiles around it, with nnU-Net's
Gaussian weights. So an image is never held as logits: its labels are decided block by block.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunetv2_swipe.inference.blocks import Block, TilePart, mean, mean_over_tiles
from nnunetv2_swipe.inference.memory import spare_memory
from nnunetv2_swipe.network.lattice_decoder import LatticeDecoder, padding_of, rows_per_chunk
from nnunetv2_swipe.network.mise import decode_field, levels_of_lattice
from nnunetv2_swipe.network.swipe_net import FirstLayerTerms, SwIPENet

_GAUSSIAN_WIDTH = 1 / 8
"""Standard deviation of the tiles' weights, in tiles: nnU-Net's."""
_VALUES_PER_BLOCK, _POINTS_PER_BLOCK = 1 << 24, 1 << 21
"""Logits and points of a block at most; decoding takes several times their memory."""


class _Tile(NamedTuple):
    """Voxels [start, end) of the padded image along z, y and x; of a 2D configuration one slice."""

    start: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def box(self) -> tuple[slice, ...]:
        """Where it is in the image, (channels, z, y, x)."""
        return (slice(None), *[slice(a, b) for a, b in zip(self.start, self.end, strict=True)])

    def reaches(self, lowest: Sequence[float], highest: Sequence[float]) -> bool:
        """Whether it may hold positions within bounds along each axis."""
        axes = zip(self.start, self.end, lowest, highest, strict=True)
        return all(start - 0.5 <= high and low < end - 0.5 for start, end, low, high in axes)


class _Pass(NamedTuple):
    """A tile as one fold sees it, mirrored along some of the network's axes."""

    network: SwIPENet
    mirrored: tuple[int, ...]
    terms: FirstLayerTerms

    def mirror(self, axis: int, positions: Tensor) -> Tensor:
        """Positions along one of the network's axes, in voxels of the tile, as this pass sees them."""
        return self.terms.size[axis] - 1 - positions if axis in self.mirrored else positions


class TiledImage:
    """A preprocessed image, to be decoded at any positions.

    Args:
        predictor: nnU-Net's predictor, holding a model of a SwIPE trainer.
        image: Preprocessed image with its source channels, (channels, z, y, x), what SwIPE's preprocessor returns as a
            tensor; of a cascade, with the previous stage's segmentation one-hot behind it.
        keep: Keep the embeddings of all tiles; else those before a lattice are forgotten when it is decoded. If more
            than fit into half of the main memory are needed, those unused for longest are forgotten, too, and warned
            of: they are made again when they are needed.

    Attributes:
        shape: Of the preprocessed image, (z, y, x).
        num_classes: Segmentation heads K.
        config: Settings of the network.
        device: Where it is decoded.

    Raises:
        ValueError: The model is not of a SwIPE trainer.
    """

    def __init__(self, predictor: nnUNetPredictor, image: Tensor, *, keep: bool = False) -> None:
        self._networks = _networks(predictor)
        self.config = self._networks[0].config
        self.shape = tuple(image.shape[1:])
        self.num_classes = predictor.label_manager.num_segmentation_heads
        self.device = predictor.device
        self._gaussian = predictor.use_gaussian
        self._mirrored = _mirrored(predictor)
        self._image, inside = pad_nd_image(
            image, predictor.configuration_manager.patch_size, "constant", {"value": 0}, return_slicer=True
        )
        self._padding = torch.tensor([part.start for part in inside[1:]])
        slicers = predictor._internal_get_sliding_window_slicers(self._image.shape[1:])
        self._tiles = [_tile(slicer[1:]) for slicer in slicers]
        self._keep = keep
        self._embedded: dict[_Tile, list[_Pass]] = {}  # those used last come last

    def blocks(self, positions: Sequence[Tensor], *, labels_only: bool = False) -> list[tuple[slice, ...]]:
        """Parts of a lattice to decode one after the other: between the beginnings of tiles, and not too large.

        In raster order, so that every tile is embedded once.

        Args:
            positions: Of the lattice along z, y and x, ascending, in voxels of the image.
            labels_only: `decode_lattice` will be asked for labels alone: blocks of many classes may be larger.
        """
        parts = []
        for axis, (p, padding) in enumerate(zip(positions, self._padding, strict=True)):
            starts = torch.tensor(sorted({tile.start[axis] for tile in self._tiles})[1:])
            borders = torch.searchsorted(p, starts - padding - 0.5).tolist()
            parts.append([slice(a, b) for a, b in itertools.pairwise([0, *borders, len(p)]) if b > a])
        most = _VALUES_PER_BLOCK // self.num_classes
        if labels_only and not self.config.regions:
            most <<= self._levels(positions)  # the first lattice is the only one whose logits are there at once
        return list(itertools.product(*_bounded(parts, min(most, _POINTS_PER_BLOCK))))

    @torch.inference_mode()
    def decode_lattice(self, positions: Sequence[Tensor], *, labels_only: bool = False) -> Tensor:
        """Logits (K, *lattice) float32 of positions along z, y and x, ascending and evenly spaced, in voxels.

        They are decoded as the plan says: MISE, own or blended. In 2D those of the nearest slice. Or labels alone, with
        less memory and work: (1, *lattice), with regions (K, *lattice) bool.
        """
        self._forget_before(positions)
        return decode_field(self._block(positions), self.config, self._levels(positions), labels_only=labels_only)[0]

    @torch.inference_mode()
    def variance_lattice(self, positions: Sequence[Tensor]) -> Tensor:
        """Variances (4, *lattice) float32, one for each of `UNCERTAINTIES`, summed over classes.

        Every position is decoded, by all its nearest patches. By the law of total variance they add up, in a tile, to
        that of the label given the mean probabilities; of several tiles they are the mean.
        """
        self._forget_before(positions)
        block = self._block(positions)
        index = torch.arange(math.prod(block.size), device=self.device)
        parts = [block.variances(i) for i in index.split(rows_per_chunk(self.device))]
        return torch.cat(parts).T.unflatten(1, block.size)

    @torch.inference_mode()
    def decode(self, points: Tensor) -> Tensor:
        """Logits (M, K) float32 of positions (M, 3) in voxels of the image, inside it; in 2D of the nearest slice."""
        return torch.cat([self._decode(part) for part in points.split(rows_per_chunk(self.device))])

    def _decode(self, points: Tensor) -> Tensor:
        points = points + self._padding
        lowest, highest = points.amin(0).tolist(), points.amax(0).tolist()
        tiles = [tile for tile in self._tiles if tile.reaches(lowest, highest)]
        points = points.to(self.device)

        def logits_in(number: int, chosen: Tensor) -> Tensor:
            first = torch.tensor(tiles[number].start, device=self.device)
            within = (points[chosen] - first)[:, -self.config.dims :]
            return mean(self._decode_pass(p, within) for p in self.passes(tiles[number]))

        weights = [reduce(torch.mul, self._weights(tile, points.unbind(1))) for tile in tiles]
        return mean_over_tiles(torch.stack(weights), self.num_classes, logits_in)

    def _decode_pass(self, by: _Pass, within: Tensor) -> Tensor:
        points = torch.stack([by.mirror(axis, p) for axis, p in enumerate(within.unbind(1))], 1)
        n = len(points)
        points = F.pad(points, (0, 0, 0, padding_of(n, self.device)))
        sample = torch.zeros(len(points), dtype=torch.int64, device=self.device)
        decode = by.network.decode_blended if self.config.decoding == "blended" else by.network.decode
        return decode(by.terms.to(self.device), points, sample)[:n]

    def _levels(self, positions: Sequence[Tensor]) -> int:
        return levels_of_lattice(self.config.mise_levels, positions[-self.config.dims :])

    def _block(self, positions: Sequence[Tensor]) -> Block:
        return Block(
            self._parts_in_tiles(positions),
            tuple(map(len, positions)),
            config=self.config,
            num_classes=self.num_classes,
            n_mirrored=len(self._mirrored),
            device=self.device,
        )

    def _forget_before(self, positions: Sequence[Tensor]) -> None:
        """Drop the embeddings of tiles that end before a lattice, unless they are kept."""
        if not self._keep:
            first = positions[0][0] + self._padding[0]
            self._embedded = {t: passes for t, passes in self._embedded.items() if t.end[0] - 0.5 > first}

    def passes(self, tile: _Tile) -> list[_Pass]:
        """What every fold, mirrored in every way, makes of a tile; computed when first asked for."""
        passes = self._embedded.pop(tile, None)
        if passes is None:
            crop = self._crop(tile)
            passes = [
                _Pass(network, axes, _terms(network, crop.flip([a + 2 for a in axes])))
                for network in self._networks
                for axes in self._mirrored
            ]
            self._make_room(sum(p.terms.patch.nbytes for p in passes))
        self._embedded[tile] = passes
        return passes

    def _make_room(self, n_bytes: int) -> None:
        """Forget the tiles unused for longest until the embeddings of one more, of as many bytes, are not too much."""
        most = spare_memory() / n_bytes
        while self._embedded and len(self._embedded) + 1 > most:
            del self._embedded[next(iter(self._embedded))]
            warnings.warn(
                f"The embeddings of {int(most)} tiles are all that fits into half of the memory; others are made "
                "again whenever they are needed. With fewer folds, or without mirroring, they need less.",
                stacklevel=2,
            )

    @torch.inference_mode()
    def attention(self) -> Tensor | None:
        """Weight (n stages, *shape) of every stage in the embedding of each voxel's patch (MEA), if the network has it.

        Means over folds, and over tiles where they overlap; not mirrored.
        """
        total = torch.zeros(len(self.config.strides), *self._image.shape[1:])
        count = torch.zeros(self._image.shape[1:])
        for tile in self._tiles:
            for network in self._networks:
                embeddings = network.encode(self._crop(tile))
                if embeddings.attention is None:
                    return None
                weights = _of_voxels(embeddings.attention[0], self.config.patch_size, embeddings.size)
                total[tile.box] += weights.view_as(total[tile.box])
                count[tile.box[1:]] += 1
        inside = (slice(None), *[slice(p, p + n) for p, n in zip(self._padding.tolist(), self.shape, strict=True)])
        return total.div_(count)[inside]

    def _crop(self, tile: _Tile) -> Tensor:
        """What the network sees of a tile, (1, channels, *crop)."""
        crop = self._image[tile.box][None].to(self.device)
        return crop.squeeze(2) if self.config.dims == 2 else crop

    def _parts_in_tiles(self, positions: Sequence[Tensor]) -> Iterator[TilePart]:
        """What of a lattice lies in each tile that holds any of it."""
        padded = [p + padding for p, padding in zip(positions, self._padding, strict=True)]
        lowest, highest = ([float(p[i]) for p in padded] for i in (0, -1))
        for tile in self._tiles:
            if not tile.reaches(lowest, highest):
                continue
            ends = [torch.tensor([a - 0.5, b - 0.5]) for a, b in zip(tile.start, tile.end, strict=True)]
            where = [slice(*torch.searchsorted(p, e).tolist()) for p, e in zip(padded, ends, strict=True)]
            if all(w.stop > w.start for w in where):
                within = [p[w] - start for p, w, start in zip(padded, where, tile.start, strict=True)]
                weights = [w.to(self.device) for w in self._weights(tile, padded)]
                lattice = within[-self.config.dims :]
                decoders = [
                    LatticeDecoder(
                        p.network, p.terms, [p.mirror(axis, v) for axis, v in enumerate(lattice)], self.device
                    )
                    for p in self.passes(tile)
                ]
                yield TilePart(where, weights, decoders)

    def _weights(self, tile: _Tile, positions: Sequence[Tensor]) -> list[Tensor]:
        """Factors of a tile's weight at positions along each axis, in voxels of the padded image; zero outside it."""
        factors = []
        for p, start, end in zip(positions, tile.start, tile.end, strict=True):
            weight = ((p >= start - 0.5) & (p < end - 0.5)).to(p.dtype)
            size = end - start
            if self._gaussian and size > 1:
                weight *= torch.exp(-0.5 * ((p - start - size // 2) / (size * _GAUSSIAN_WIDTH)).square())
            factors.append(weight)
        return factors


def plain_network(predictor: nnUNetPredictor) -> nn.Module:
    """The predictor's network, not compiled."""
    return getattr(predictor.network, "_orig_mod", predictor.network)


def swipe_network(predictor: nnUNetPredictor) -> SwIPENet:
    """The predictor's network; ValueError if it is not of a SwIPE trainer."""
    network = plain_network(predictor)
    if not isinstance(network, SwIPENet):
        raise ValueError(
            f"Only models of SwIPE trainers can be decoded on any grid; this one is a {type(network).__name__} of "
            f"{predictor.trainer_name}. Use nnU-Net's own commands."
        )
    return network


def _networks(predictor: nnUNetPredictor) -> list[SwIPENet]:
    """The network of each fold, in evaluation, on the predictor's device."""
    networks = []
    for parameters in predictor.list_of_parameters:
        network = copy.deepcopy(swipe_network(predictor))  # the predictor goes on to load other folds into its own
        network.load_state_dict(parameters)
        networks.append(network.to(predictor.device).eval())
    return networks


def _mirrored(predictor: nnUNetPredictor) -> list[tuple[int, ...]]:
    """Every set of axes that the predictor mirrors at once, none first."""
    axes = (predictor.allowed_mirroring_axes or ()) if predictor.use_mirroring else ()
    return [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]


def _of_voxels(values: Tensor, patch_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """Values (*grid, C) of patches as values (C, *size) float32 of their voxels."""
    values = values.movedim(-1, 0).float().cpu()
    for axis, (s, n) in enumerate(zip(patch_size, size, strict=True), start=1):
        values = values.repeat_interleave(s, axis).narrow(axis, 0, n)
    return values


def _terms(network: SwIPENet, crop: Tensor) -> FirstLayerTerms:
    """What a network makes of a crop, in main memory."""
    return network.first_layer_terms(network.encode(crop)).to("cpu")


def _tile(slicer: Sequence[slice | int]) -> _Tile:
    """A tile from nnU-Net's slicer of it, whose first axis is a number in 2D."""
    parts = [slice(part, part + 1) if isinstance(part, int) else part for part in slicer]
    return _Tile(tuple(part.start for part in parts), tuple(part.stop for part in parts))


def _bounded(parts: Sequence[list[slice]], most: int) -> list[list[slice]]:
    """Parts of each axis, halved until no box of them has more points than allowed."""
    parts = [list(p) for p in parts]
    while True:
        longest = [max((p.stop - p.start for p in axis), default=0) for axis in parts]
        if math.prod(longest) <= most or max(longest) == 1:
            return parts
        axis, length = max(enumerate(longest), key=lambda pair: pair[1])
        parts[axis] = [half for p in parts[axis] for half in _halves(p, longer_than=length // 2)]


def _halves(part: slice, *, longer_than: int) -> list[slice]:
    length = part.stop - part.start
    middle = part.start + length // 2
    return [part] if length <= longer_than or length == 1 else [slice(part.start, middle), slice(middle, part.stop)]
