// Which form takes a shape and a batch (forms.cuh), and how it is launched.
#include <algorithm>
#include <stdexcept>

#define FASTMALADE_HOST_ONLY
#include "cuda/engine.h"
#include "cuda/exchange.cuh"
#include "cuda/shapes.cuh"
#include "cuda/tensor_layout.cuh"

namespace fastmalade::cuda {
namespace {

// Predicted, not yet measured on a GPU: the time of a group of eight in the digits form over that of one image in a
// cluster of eight (docs/performance.md). While the clusters of a batch take fewer turns than that, they are quicker.
constexpr int64_t kClusterTurns = 8;

// The form split. More blocks for one image make barriers longer and have ever less to do; groups are as large as those
// of the other forms. Its tiles load about three times as long for a multiply-add as those of the form general, so that
// fewer than four blocks gain nothing on it; two do on the form digits, which takes four images one after the other.
constexpr int kMostSplit = 16, kMostSplitImages = 8, kLeastSplit = 4, kLeastSplitDigits = 2;

bool is_digits(const AutoencoderShape& s) {
    return s.channels == 1 && s.height == 28 && s.width == 28 && s.hidden1 == 10 && s.hidden2 == 25;
}

AnyShape narrow(const AutoencoderShape& s) {
    return AnyShape{(int)s.channels, (int)s.height, (int)s.width, (int)s.hidden1, (int)s.hidden2};
}

template <class Tiles>
Choice plan(const AutoencoderShape& shape, FormName form, int images, int cluster, bool resident, bool in_place,
            bool gradient) {
    const AnyShape s = narrow(shape);
    const PackedLayout at = packed_layout<Tiles>(s);
    const bool keeps = form == FormName::cluster || form == FormName::split;
    Plan memory = make_plan(s, images, resident ? at.forward_floats : 0, in_place, keeps, gradient);
    // Planes lie in device memory; shared memory has the weights alone.
    if (form == FormName::split) memory.floats = resident ? at.forward_floats : 0;
    return Choice{form,
                  images,
                  cluster,
                  resident,
                  0,
                  256,
                  memory.floats * (int)sizeof(float),
                  gradient ? at.floats : at.forward_floats};
}

// The plan of one form with `images` images a group, weights resident if they fit.
Choice plan_form(const AutoencoderShape& s, FormName form, int images, int cluster, bool gradient,
                 const DeviceFacts& device) {
    if (form == FormName::digits) return plan<RowTiles>(s, form, images, 1, !gradient, !gradient, gradient);
    for (const bool resident : {true, false}) {
        if (resident && gradient) continue;
        const Choice c = form == FormName::cluster || form == FormName::split
                             ? plan<SmallTiles>(s, form, images, cluster, resident, false, gradient)
                             : plan<GeneralTiles>(s, form, images, 1, resident, false, gradient);
        if (!resident || c.shared_bytes <= device.shared_bytes) return c;
    }
    throw std::logic_error("unreachable: the second plan is returned whatever its size");
}

// The form on tensor cores, weights in shared memory if they fit.
Choice plan_tensor(const AutoencoderShape& shape, Precision precision, const DeviceFacts& device) {
    const AnyShape s = narrow(shape);
    const int weights = tensor_layout(s).forward_floats;
    const int with_weights = make_tensor_plan(s, weights).floats * (int)sizeof(float);
    const bool resident = with_weights <= device.shared_bytes;
    const int bytes = resident ? with_weights : make_tensor_plan(s, 0).floats * (int)sizeof(float);
    return Choice{FormName::tensor, kTensorImages, 1, resident, 0, 256, bytes, weights, precision};
}

void check_tensor(const AutoencoderShape& s, const DeviceFacts& device, FormName form, int images, int cluster,
                  Precision precision) {
    const std::string name = precision == Precision::tf32 ? "tf32" : "tf32x3";
    if (form != FormName::automatic && form != FormName::tensor) {
        throw std::invalid_argument("form: expected auto or tensor for the precision " + name + ", got " +
                                    name_of(form));
    }
    if (!is_digits(s)) {
        throw std::invalid_argument("precision: expected fp32 for this shape (" + name +
                                    " takes images of 1x28x28 with hidden channels 10 and 25), got " + name);
    }
    if (!device.has_tf32) {
        throw std::invalid_argument(
            "precision: expected fp32 on a device, or from a build, of capability below 8.0, got " + name);
    }
    if ((images != 0 && images != kTensorImages) || cluster > 1) {
        throw std::invalid_argument("images, cluster: expected 8 and 1, or 0, for the form tensor, got " +
                                    std::to_string(images) + " and " + std::to_string(cluster));
    }
}

Choice with_grid(Choice c, int64_t batch, const DeviceFacts& device) {
    const int64_t groups = (batch + c.images - 1) / c.images;
    // One block to a multiprocessor is all that shared memory lets live there; small models leave room for more, which
    // take their turn.
    const int64_t places = std::max<int64_t>(1, (int64_t)device.multiprocessors / c.cluster);
    c.blocks = (int)(std::min(groups, places) * c.cluster);
    return c;
}

// Blocks that share one image in the form split: as many as have a tile for every thread in its largest layer, within
// what the batch leaves idle.
int blocks_of_split(const AutoencoderShape& s, int64_t batch, const DeviceFacts& device) {
    const int64_t tiles = 4 * s.hidden1 * (s.height / 4) * ((s.width / 4 + SmallTiles::P - 1) / SmallTiles::P);
    const int64_t useful = std::min<int64_t>((tiles + 255) / 256, kMostSplit);
    return (int)std::max<int64_t>(1, std::min(useful, device.multiprocessors / std::max<int64_t>(batch, 1)));
}

// The form split and its grid, with memory for what its blocks exchange.
Choice plan_split(const AutoencoderShape& s, int64_t batch, int images, int cluster, bool gradient,
                  const DeviceFacts& device) {
    if (cluster > device.multiprocessors) {
        throw std::invalid_argument("cluster: expected at most " + std::to_string(device.multiprocessors) +
                                    " blocks, which can wait for each other on this device, got " +
                                    std::to_string(cluster));
    }
    if (images > kMostSplitImages) {
        throw std::invalid_argument("images: expected at most " + std::to_string(kMostSplitImages) +
                                    " for the form split, got " + std::to_string(images));
    }
    Choice c = with_grid(plan_form(s, FormName::split, images, cluster, gradient, device), batch, device);
    const Plan planes = make_plan(narrow(s), images, 0, false, true, gradient);
    c.packed_floats = round_up(c.packed_floats, kLineFloats) + exchange_floats(c.blocks / c.cluster, planes.floats);
    return c;
}

}  // namespace

const char* name_of(FormName form) {
    switch (form) {
        case FormName::automatic: return "auto";
        case FormName::digits: return "digits";
        case FormName::general: return "general";
        case FormName::cluster: return "cluster";
        case FormName::split: return "split";
        case FormName::tensor: return "tensor";
    }
    throw std::logic_error("unreachable: every form has a name");
}

Choice choose(const AutoencoderShape& s, int64_t batch, bool gradient, const DeviceFacts& device, FormName form,
              int images, int cluster, Precision precision) {
    if (precision != Precision::fp32) {
        check_tensor(s, device, form, images, cluster, precision);
        const Choice c = plan_tensor(s, precision, device);
        if (c.shared_bytes > device.shared_bytes) {
            throw std::invalid_argument(
                "precision: expected fp32 on a device with " + std::to_string(device.shared_bytes) +
                " bytes of shared memory a block, got one that needs " + std::to_string(c.shared_bytes));
        }
        if (!gradient) return with_grid(c, batch, device);
        // In float32, for which the sizes of the form tensor mean nothing.
        form = FormName::automatic, images = cluster = 0;
    } else if (form == FormName::tensor) {
        throw std::invalid_argument("form: expected a precision of tf32x3 or tf32 for the form tensor, got fp32");
    }
    const auto fits = [&](const Choice& c) { return c.shared_bytes <= device.shared_bytes; };
    // Far beyond what fits: keeps every size of a plan within 32 bits.
    const int64_t most = 1 << 16;
    const bool bounded = s.pixels() <= most && s.hidden1 * s.height * s.width / 4 <= most &&
                         s.hidden2 * s.height * s.width / 16 <= most && s.hidden1 * s.hidden2 <= most &&
                         s.channels * std::max(s.channels, s.hidden1) <= most;
    if (!bounded || !fits(plan_form(s, FormName::general, 1, 1, gradient, device))) {
        throw std::invalid_argument(
            "shape: expected a state and activations that fit the " + std::to_string(device.shared_bytes) +
            " bytes of shared memory of a block, got images of " + std::to_string(s.channels) + "x" +
            std::to_string(s.height) + "x" + std::to_string(s.width) + " with hidden channels " +
            std::to_string(s.hidden1) + " and " + std::to_string(s.hidden2));
    }
    const int whole_cluster = cluster > 0 ? cluster : std::min(8, device.most_cluster);
    const bool clusters =
        device.most_cluster > 1 && fits(plan_form(s, FormName::cluster, 1, whole_cluster, gradient, device));
    if (form == FormName::automatic) {
        const int64_t turns = (batch * whole_cluster + device.multiprocessors - 1) / device.multiprocessors;
        const bool idle = batch < 8 * (int64_t)device.multiprocessors && turns <= kClusterTurns;
        if (clusters && idle) {
            form = FormName::cluster;
        } else {
            const bool digits = is_digits(s) && fits(plan_form(s, FormName::digits, 4, 1, gradient, device));
            const bool split = blocks_of_split(s, batch, device) >= (digits ? kLeastSplitDigits : kLeastSplit);
            form = !clusters && split ? FormName::split : digits ? FormName::digits : FormName::general;
        }
    }
    if (form == FormName::digits && !is_digits(s)) {
        throw std::invalid_argument("form: expected general, cluster or split for this shape, got digits");
    }
    if (form == FormName::cluster) {
        if (!clusters) {
            throw std::invalid_argument("form: expected digits, general or split on this device, got cluster");
        }
        return with_grid(plan_form(s, form, images > 0 ? images : 1, whole_cluster, gradient, device), batch, device);
    }
    if (form == FormName::split) {
        const int split = cluster > 0 ? cluster : blocks_of_split(s, batch, device);
        return plan_split(s, batch, images > 0 ? images : 1, split, gradient, device);
    }
    if (images == 0) {
        // The most images that fit, but no more than leave a block for every multiprocessor.
        for (const int candidate : {8, 4, 2, 1}) {
            if (form == FormName::digits && candidate < 4) break;
            images = candidate;
            const bool spread = batch > (int64_t)(candidate / 2) * device.multiprocessors;
            if (spread && fits(plan_form(s, form, candidate, 1, gradient, device))) break;
        }
    }
    if (form == FormName::digits && images != 4 && images != 8) {
        throw std::invalid_argument("images: expected 4 or 8 for the form digits, got " + std::to_string(images));
    }
    const Choice c = plan_form(s, form, images, 1, gradient, device);
    if (!fits(c)) {
        throw std::invalid_argument("images: expected groups within " + std::to_string(device.shared_bytes) +
                                    " bytes of shared memory, got " + std::to_string(images) + " images, which need " +
                                    std::to_string(c.shared_bytes));
    }
    return with_grid(c, batch, device);
}

}  // namespace fastmalade::cuda
