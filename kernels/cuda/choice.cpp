// Which form takes a shape and a batch (forms.cuh), and how it is launched.
//
// No constant here is measured on a GPU. Sizes of shared memory are exact; what concerns speed is predicted by
// tools/gpu_prediction.py, and each constant says from what. Every form gives the same bits in float32, so measured
// values can replace them without changing a result.
#include <algorithm>
#include <stdexcept>
#include <string>

#define FASTMALADE_HOST_ONLY
#include "cuda/engine.h"
#include "cuda/forms.cuh"
#include "cuda/tensor_layout.cuh"

namespace fastmalade::cuda {
namespace {

// Predicted. Ten steps of a group of eight in the form digits take 734 us of a multiprocessor, by the instructions of
// its loops; those of one image in a cluster of eight take 36 us, by its dependent multiply-adds and barriers, without
// any wait for a load. So on paper clusters are quicker for up to 20 turns; less than half of that allows for the
// loads.
constexpr int64_t kClusterTurns = 8;

// Blocks of a cluster where the caller names none: the most that every device with clusters takes. Predicted: five
// blocks have a thread for each of the 1,120 tiles of a digit's largest layer, and eight share them out to more
// schedulers. What eight cost at a barrier is not known.
constexpr int kUsualCluster = 8;

// Images of a group that are tried, the most first. Not a matter of speed alone: what fits decides.
constexpr int kGroups[] = {8, 4, 2, 1};

bool is_digits(const AutoencoderShape& s) {
    using D = DigitShape;
    return s.channels == D::channels && s.height == D::height && s.width == D::width && s.hidden1 == D::hidden1 &&
           s.hidden2 == D::hidden2;
}

AnyShape narrow(const AutoencoderShape& s) {
    return AnyShape{(int)s.channels, (int)s.height, (int)s.width, (int)s.hidden1, (int)s.hidden2};
}

// A form with its sizes, and no grid yet.
template <class Form>
Choice sized(FormName name, const AutoencoderShape& shape, int images, int cluster) {
    const AnyShape s = narrow(shape);
    const PackedLayout at = packed_layout<typename Form::Tiles>(s);
    Choice c{};
    c.form = name, c.images = images, c.cluster = cluster, c.resident = Form::resident;
    c.threads = kBlockThreads, c.precision = Precision::fp32;
    c.shared_bytes = make_planes<Form>(s, images, Form::resident ? at.forward_floats : 0).floats * (int)sizeof(float);
    c.packed_floats = Form::has_cotangent ? at.floats : at.forward_floats;
    return c;
}

// The same, with weights in shared memory if they fit there; those of a gradient stay in device memory.
template <template <bool> class Form>
Choice sized_by_memory(FormName name, const AutoencoderShape& s, int images, int cluster, bool gradient,
                       const DeviceFacts& device) {
    if (gradient) return sized<Gradient<Form<false>>>(name, s, images, cluster);
    const Choice resident = sized<Form<true>>(name, s, images, cluster);
    return resident.shared_bytes <= device.shared_bytes ? resident : sized<Form<false>>(name, s, images, cluster);
}

Choice sized_form(FormName name, const AutoencoderShape& s, int images, int cluster, bool gradient,
                  const DeviceFacts& device) {
    switch (name) {
        case FormName::digits:
            return gradient ? sized<Gradient<Digits<0>>>(name, s, images, 1) : sized<Digits<0>>(name, s, images, 1);
        case FormName::general: return sized_by_memory<General>(name, s, images, 1, gradient, device);
        case FormName::cluster: return sized_by_memory<Cluster>(name, s, images, cluster, gradient, device);
        case FormName::tensor:
        case FormName::automatic: break;
    }
    throw std::logic_error("unreachable: a form of float32 has been chosen by now");
}

// The form on tensor cores, weights in shared memory if they fit.
Choice sized_tensor(const AutoencoderShape& shape, Precision precision, const DeviceFacts& device) {
    const AnyShape s = narrow(shape);
    Choice c{};
    c.form = FormName::tensor, c.images = kTensorImages, c.cluster = 1, c.threads = kBlockThreads;
    c.precision = precision, c.packed_floats = tensor_layout(s).forward_floats;
    const int with_weights = make_tensor_planes(s, c.packed_floats).floats * (int)sizeof(float);
    c.resident = with_weights <= device.shared_bytes;
    c.shared_bytes = c.resident ? with_weights : make_tensor_planes(s, 0).floats * (int)sizeof(float);
    return c;
}

void check_tensor(const AutoencoderShape& s, const DeviceFacts& device, const Request& request) {
    const std::string name = request.precision == Precision::tf32 ? "tf32" : "tf32x3";
    if (request.form != FormName::automatic && request.form != FormName::tensor) {
        throw std::invalid_argument("form: expected auto or tensor for the precision " + name + ", got " +
                                    name_of(request.form));
    }
    if (!is_digits(s)) {
        throw std::invalid_argument("precision: expected fp32 for this shape (" + name +
                                    " takes images of 1x28x28 with hidden channels 10 and 25), got " + name);
    }
    if (!device.has_tf32) {
        throw std::invalid_argument(
            "precision: expected fp32 on a device, or from a build, of capability below 8.0, got " + name);
    }
    if ((request.images != 0 && request.images != kTensorImages) || request.cluster > 1) {
        throw std::invalid_argument("images, cluster: expected 8 and 1, or 0, for the form tensor, got " +
                                    std::to_string(request.images) + " and " + std::to_string(request.cluster));
    }
}

Choice with_grid(Choice c, int64_t batch, const DeviceFacts& device) {
    const int64_t groups = (batch + c.images - 1) / c.images;
    // One block to a multiprocessor: shared memory has room for no more. Small models would leave some; their groups
    // take turns instead.
    const int64_t places = std::max<int64_t>(1, (int64_t)device.multiprocessors / c.cluster);
    c.blocks = (int)(std::min(groups, places) * c.cluster);
    return c;
}

Choice choose_tensor(const AutoencoderShape& s, int64_t batch, const DeviceFacts& device, Precision precision) {
    const Choice c = sized_tensor(s, precision, device);
    if (c.shared_bytes > device.shared_bytes) {
        throw std::invalid_argument("precision: expected fp32 on a device with " + std::to_string(device.shared_bytes) +
                                    " bytes of shared memory a block, got one that needs " +
                                    std::to_string(c.shared_bytes));
    }
    return with_grid(c, batch, device);
}

// The form general takes whatever another form takes, so what it refuses fits nowhere.
void check_fits(const AutoencoderShape& s, bool gradient, const DeviceFacts& device) {
    // Far beyond what fits: keeps every size within 32 bits.
    const int64_t most = 1 << 16;
    const bool bounded = s.pixels() <= most && s.hidden1 * s.height * s.width / 4 <= most &&
                         s.hidden2 * s.height * s.width / 16 <= most && s.hidden1 * s.hidden2 <= most &&
                         s.channels * std::max(s.channels, s.hidden1) <= most;
    if (bounded && sized_form(FormName::general, s, 1, 1, gradient, device).shared_bytes <= device.shared_bytes) return;
    throw std::invalid_argument(
        "shape: expected a state and activations that fit the " + std::to_string(device.shared_bytes) +
        " bytes of shared memory of a block, got images of " + std::to_string(s.channels) + "x" +
        std::to_string(s.height) + "x" + std::to_string(s.width) + " with hidden channels " +
        std::to_string(s.hidden1) + " and " + std::to_string(s.hidden2));
}

// Of the form digits or general: the most images that fit, but no more than leave a group for every multiprocessor.
int images_of_group(FormName form, const AutoencoderShape& s, int64_t batch, bool gradient, const DeviceFacts& device) {
    int images = 0;
    for (const int candidate : kGroups) {
        if (form == FormName::digits && candidate < 4) break;
        images = candidate;
        const bool spread = batch > (int64_t)(candidate / 2) * device.multiprocessors;
        if (spread && sized_form(form, s, candidate, 1, gradient, device).shared_bytes <= device.shared_bytes) break;
    }
    return images;
}

}  // namespace

const char* name_of(FormName form) {
    switch (form) {
        case FormName::automatic: return "auto";
        case FormName::digits: return "digits";
        case FormName::general: return "general";
        case FormName::cluster: return "cluster";
        case FormName::tensor: return "tensor";
    }
    throw std::logic_error("unreachable: every form has a name");
}

Choice choose(const AutoencoderShape& s, int64_t batch, bool gradient, const DeviceFacts& device,
              const Request& request) {
    FormName form = request.form;
    int images = request.images, cluster = request.cluster;
    if (request.precision != Precision::fp32) {
        check_tensor(s, device, request);
        const Choice c = choose_tensor(s, batch, device, request.precision);
        if (!gradient) return c;
        // In float32, for which the sizes of the form tensor mean nothing.
        form = FormName::automatic, images = cluster = 0;
    } else if (form == FormName::tensor) {
        throw std::invalid_argument("form: expected a precision of tf32x3 or tf32 for the form tensor, got fp32");
    }
    check_fits(s, gradient, device);
    const auto fits = [&](const Choice& c) { return c.shared_bytes <= device.shared_bytes; };
    if (cluster <= 0) cluster = std::min(kUsualCluster, device.most_cluster);
    const bool clusters =
        device.most_cluster > 1 && fits(sized_form(FormName::cluster, s, 1, cluster, gradient, device));
    if (form == FormName::automatic) {
        const int64_t turns = (batch * cluster + device.multiprocessors - 1) / device.multiprocessors;
        const bool digits = is_digits(s) && fits(sized_form(FormName::digits, s, 4, 1, gradient, device));
        form = clusters && turns <= kClusterTurns ? FormName::cluster : digits ? FormName::digits : FormName::general;
    }
    if (form == FormName::digits && !is_digits(s)) {
        throw std::invalid_argument("form: expected general or cluster for this shape, got digits");
    }
    if (form == FormName::cluster) {
        if (!clusters) {
            throw std::invalid_argument("form: expected digits or general on this device, got cluster");
        }
        return with_grid(sized_form(form, s, images > 0 ? images : 1, cluster, gradient, device), batch, device);
    }
    if (images == 0) images = images_of_group(form, s, batch, gradient, device);
    if (form == FormName::digits && images != 4 && images != 8) {
        throw std::invalid_argument("images: expected 4 or 8 for the form digits, got " + std::to_string(images));
    }
    const Choice c = sized_form(form, s, images, 1, gradient, device);
    if (!fits(c)) {
        throw std::invalid_argument("images: expected groups within " + std::to_string(device.shared_bytes) +
                                    " bytes of shared memory, got " + std::to_string(images) + " images, which need " +
                                    std::to_string(c.shared_bytes));
    }
    return with_grid(c, batch, device);
}

}  // namespace fastmalade::cuda
