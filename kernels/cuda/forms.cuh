// The forms that are compiled, and which of them takes a shape and a batch.
//
//   digits     1x28x28 with 10 and 25 hidden channels (paper 000): everything known to the compiler, weights resident.
//              Eight images a block fill four lanes' rows times eight images, and fit the 227 KB of sm_90; four fit
//              163 KB.
//   general    any shape of which one image fits on chip; weights from shared memory where they fit beside it, else
//              from L2
//   cluster    the same shapes, a cluster of blocks for each image: for batches that leave most of the machine idle
//   split      the same where there are no clusters, or they cannot hold the shape: blocks share an image through
//              device memory
//
// One more, of reduced precision, is in tensor_chain.cuh. All of these do the same operations in the same order for
// every output, so they give the same bits.
#pragma once

#include "cuda/block.cuh"

namespace fastmalade::cuda {

using DigitShape = FixedShape<1, 28, 28, 10, 25>;

template <int IMAGES>
using Digits = Form<DigitShape, RowTiles, BlockPeers, IMAGES, 256, true, true, true>;
template <bool RESIDENT>
using General = Form<AnyShape, GeneralTiles, BlockPeers, 0, 256, RESIDENT, false, false>;
template <bool RESIDENT>
using Cluster = Form<AnyShape, SmallTiles, ClusterPeers, 0, 256, RESIDENT, false, false>;
template <bool RESIDENT>
using Split = Form<AnyShape, SmallTiles, DevicePeers, 0, 256, RESIDENT, false, false>;

// Gradients read weights in both directions, which do not fit beside the activations: they come through the caches.
template <int IMAGES>
using DigitsGradient = Form<DigitShape, RowTiles, BlockPeers, IMAGES, 256, false, true, false>;
using GeneralGradient = General<false>;
using ClusterGradient = Cluster<false>;
using SplitGradient = Split<false>;

}  // namespace fastmalade::cuda
