// The forms of the kernels as traits: what of a form is known when it is compiled. choice.cpp takes sizes from them and
// chooses one by shape, batch and device; engine.cu launches the kernels that are compiled for each.
//
//   Digits     1x28x28 with 10 and 25 hidden channels (paper 000): all sizes known to the compiler, weights in shared
//              memory. Eight images a block fit the 227 KB of sm_90, and four rows of each are the 32 lanes of a warp;
//              four images fit 163 KB.
//   General    any shape of which one image fits on chip
//   Cluster    the same shapes, a cluster of blocks for each group: for batches that leave most of the GPU idle
//   TensorForm reduced precision on tensor cores, in tensor_chain.cuh
//
// All but the last do the same operations in the same order for every output, so they give the same bits.
#pragma once

#include "cuda/shapes.cuh"

namespace fastmalade::cuda {

struct BlockPeers;    // block.cuh: one block computes a group by itself
struct ClusterPeers;  // the blocks of a cluster share one

// Every form has these members:
//   Shape, Tiles, Peers
//   images           of a group; 0 where the launch decides
//   resident         weights are copied to shared memory once; else they are read from device memory, through both
//                    caches, wherever they are used
//   uniform          the lanes of a warp have the same tile of different rows and images, so a weight is one broadcast
//   in_place         conv2 overwrites its input, for which no thread may have more than one tile
//   keeps_upsampled  deconv1's output has a plane of its own
//   has_cotangent    so has the gradient with respect to the state
template <int IMAGES>
struct Digits {
    using Shape = DigitShape;
    using Tiles = RowTiles;
    using Peers = BlockPeers;
    static constexpr int images = IMAGES;
    static constexpr bool resident = true, uniform = true, in_place = true, keeps_upsampled = false;
    static constexpr bool has_cotangent = false;
};

template <bool RESIDENT>
struct General {
    using Shape = AnyShape;
    using Tiles = GeneralTiles;
    using Peers = BlockPeers;
    static constexpr int images = 0;
    static constexpr bool resident = RESIDENT, uniform = false, in_place = false, keeps_upsampled = false;
    static constexpr bool has_cotangent = false;
};

template <bool RESIDENT>
struct Cluster {
    using Shape = AnyShape;
    using Tiles = SmallTiles;
    using Peers = ClusterPeers;
    static constexpr int images = 0;
    static constexpr bool resident = RESIDENT, uniform = false, in_place = false, keeps_upsampled = true;
    static constexpr bool has_cotangent = false;
};

// A gradient needs all activations, and weights in both directions, which do not fit beside them.
template <class Form>
struct Gradient : Form {
    static constexpr bool resident = false, in_place = false, keeps_upsampled = true, has_cotangent = true;
};

}  // namespace fastmalade::cuda
