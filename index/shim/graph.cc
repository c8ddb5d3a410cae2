// HNSW over 8-bit codes by FAISS as plain C functions. Every function catches every exception and answers 0, or 1 with a
// message; no C++ object crosses. The caller has checked lengths, ranges and numbers, because FAISS asserts end the process.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif
#include <omp.h>

#include <faiss/IndexHNSW.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/MetricType.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/DistanceComputer.h>
#include <faiss/impl/HNSW.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/ResultHandler.h>
#include <faiss/index_io.h>

namespace {

struct Graph {
    std::unique_ptr<faiss::IndexHNSW> index;
};

template <typename Body>
int guarded(char* message, size_t message_bytes, Body body) noexcept {
    try {
        body();
        return 0;
    } catch (const std::exception& error) {
        std::snprintf(message, message_bytes, "%s", error.what());
    } catch (...) {
        std::snprintf(message, message_bytes, "unknown exception");
    }
    return 1;
}

// Reads the caller's bitmap, which other threads change with atomic operations.
bool is_live(const uint64_t* words, size_t slot) {
    return (__atomic_load_n(&words[slot / 64], __ATOMIC_RELAXED) >> (slot % 64)) & 1;
}

struct LiveSelector : faiss::IDSelector {
    const uint64_t* words;
    explicit LiveSelector(const uint64_t* words) : words(words) {}
    bool is_member(faiss::idx_t slot) const override { return is_live(words, size_t(slot)); }
};

faiss::ScalarQuantizer::QuantizerType quantizer_type(int direct) {
    return direct ? faiss::ScalarQuantizer::QT_8bit_direct : faiss::ScalarQuantizer::QT_8bit;
}

faiss::MetricType metric_type(int inner_product) {
    return inner_product ? faiss::METRIC_INNER_PRODUCT : faiss::METRIC_L2;
}

// One table for each searching thread: a fresh one would cost a byte for each row in each search.
faiss::VisitedTable& visited_table(size_t rows) {
    thread_local std::unique_ptr<faiss::VisitedTable> table;
    if (!table || table->visited.size() < rows) {
        table = std::make_unique<faiss::VisitedTable>(int(rows));
    }
    return *table;
}

void require(bool holds, const char* what) {
    if (!holds) {
        throw std::runtime_error(what);
    }
}

// Squared distance of two codes of `dimension` bytes, a multiple of 16. At most 4,096 * 255^2, which fits.
uint32_t code_distance(const uint8_t* left, const uint8_t* right, size_t dimension) {
#ifdef __AVX2__
    __m256i sum = _mm256_setzero_si256();
    for (size_t at = 0; at < dimension; at += 16) {
        const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(left + at)));
        const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(right + at)));
        const __m256i difference = _mm256_sub_epi16(a, b);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(difference, difference));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return uint32_t(_mm_cvtsi128_si32(four));
#else
    int sum = 0;
    for (size_t at = 0; at < dimension; at++) {
        const int difference = int(left[at]) - int(right[at]);
        sum += difference * difference;
    }
    return uint32_t(sum);
#endif
}

// A node on the way: distance in the upper half, slot, and in the lowest bit whether its links were followed.
using Step = uint64_t;
Step step_of(uint32_t distance, uint32_t slot) { return Step(distance) << 32 | Step(slot) << 1; }
uint32_t slot_of(Step step) { return uint32_t(step) >> 1; }

// The walk over a graph of integer codes: as FAISS's own, but it fetches codes ahead, compares integers and keeps the
// candidates sorted in one array.
struct CodeWalk {
    const faiss::HNSW& hnsw;
    const uint8_t* codes;
    size_t dimension;
    std::vector<uint8_t> query;

    const uint8_t* code(size_t slot) const { return codes + slot * dimension; }
    uint32_t distance(size_t slot) const { return code_distance(query.data(), code(slot), dimension); }

    void fetch_ahead(size_t slot) const {
        for (size_t line = 0; line < dimension; line += 64) {
            __builtin_prefetch(code(slot) + line);
        }
    }

    // Down the upper levels, always to the nearest neighbour.
    Step enter() const {
        uint32_t nearest = uint32_t(hnsw.entry_point);
        uint32_t best = distance(nearest);
        for (int level = hnsw.max_level; level >= 1; level--) {
            for (bool moved = true; moved;) {
                moved = false;
                size_t begin, end;
                hnsw.neighbor_range(nearest, level, &begin, &end);
                for (size_t at = begin; at < end && hnsw.neighbors[at] >= 0; at++) {
                    const uint32_t slot = uint32_t(hnsw.neighbors[at]);
                    const uint32_t there = distance(slot);
                    if (there < best) {
                        best = there;
                        nearest = slot;
                        moved = true;
                    }
                }
            }
        }
        return step_of(best, nearest);
    }

    // The `ef` nearest that the lowest level leads to, nearest first.
    std::vector<Step> gather(size_t ef, faiss::VisitedTable& visited) const {
        std::vector<Step> beam;
        beam.reserve(ef + 1);
        std::vector<uint32_t> fresh;
        fresh.reserve(size_t(hnsw.nb_neighbors(0)));
        beam.push_back(enter());
        visited.set(int(slot_of(beam[0])));
        for (size_t next = 0; next < beam.size();) {
            if (beam[next] & 1) {
                next++;
                continue;
            }
            beam[next] |= 1;
            size_t begin, end;
            hnsw.neighbor_range(slot_of(beam[next]), 0, &begin, &end);
            fresh.clear();
            for (size_t at = begin; at < end && hnsw.neighbors[at] >= 0; at++) {
                const int slot = hnsw.neighbors[at];
                if (!visited.get(slot)) {
                    visited.set(slot);
                    fresh.push_back(uint32_t(slot));
                    if (fresh.size() <= 3) {
                        fetch_ahead(size_t(slot));
                    }
                }
            }
            for (size_t at = 0; at < fresh.size(); at++) {
                if (at + 3 < fresh.size()) {
                    fetch_ahead(fresh[at + 3]);
                }
                const Step step = step_of(distance(fresh[at]), fresh[at]);
                if (beam.size() >= ef && step >= beam.back()) {
                    continue;
                }
                const size_t place = size_t(std::upper_bound(beam.begin(), beam.end(), step) - beam.begin());
                beam.insert(beam.begin() + std::ptrdiff_t(place), step);
                if (beam.size() > ef) {
                    beam.pop_back();
                }
                next = std::min(next, place);
            }
        }
        return beam;
    }
};

size_t search_codes(const faiss::IndexHNSW& index, const faiss::IndexScalarQuantizer& storage, const float* query, size_t wanted,
                    size_t ef, const uint64_t* live, uint32_t* slots) {
    CodeWalk walk{index.hnsw, storage.codes.data(), size_t(index.d), std::vector<uint8_t>(size_t(index.d))};
    // The caller rounded and clamped.
    std::transform(query, query + index.d, walk.query.begin(), [](float value) { return uint8_t(value); });
    faiss::VisitedTable& visited = visited_table(size_t(index.ntotal));
    // Before the walk: marks of one that an exception ended must not hide rows from this one.
    visited.advance();
    size_t count = 0;
    for (const Step step : walk.gather(ef, visited)) {
        if (count == wanted) {
            break;
        }
        if (live == nullptr || is_live(live, slot_of(step))) {
            slots[count++] = slot_of(step);
        }
    }
    return count;
}

}  // namespace

extern "C" {

int quorate_graph_new(size_t dimension, int direct, int inner_product, size_t m, size_t ef_construction, void** out, char* message,
                      size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        auto graph = std::make_unique<Graph>();
        graph->index = std::make_unique<faiss::IndexHNSWSQ>(int(dimension), quantizer_type(direct), int(m), metric_type(inner_product));
        graph->index->hnsw.efConstruction = int(ef_construction);
        *out = graph.release();
    });
}

int quorate_graph_train(void* graph, size_t count, const float* vectors, char* message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] { static_cast<Graph*>(graph)->index->train(faiss::idx_t(count), vectors); });
}

int quorate_graph_add(void* graph, size_t count, const float* vectors, size_t threads, char* message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        omp_set_num_threads(int(threads));
        static_cast<Graph*>(graph)->index->add(faiss::idx_t(count), vectors);
    });
}

int quorate_graph_write(const void* graph, const char* path, char* message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] { faiss::write_index(static_cast<const Graph*>(graph)->index.get(), path); });
}

int quorate_graph_read(const char* path, size_t dimension, size_t count, int direct, int inner_product, void** out, char* message,
                       size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        std::unique_ptr<faiss::Index> index(faiss::read_index(path, faiss::IO_FLAG_MMAP_IFC));
        auto* hnsw = dynamic_cast<faiss::IndexHNSWSQ*>(index.get());
        require(hnsw != nullptr, "the file holds another kind of index");
        auto* codes = dynamic_cast<faiss::IndexScalarQuantizer*>(hnsw->storage);
        require(codes != nullptr, "the graph has no codes");
        require(codes->sq.qtype == quantizer_type(direct), "the codes are of another kind");
        require(hnsw->metric_type == metric_type(inner_product) && codes->metric_type == hnsw->metric_type, "the metric differs");
        require(size_t(hnsw->d) == dimension && size_t(codes->d) == dimension, "the dimension differs");
        require(size_t(hnsw->ntotal) == count && size_t(codes->ntotal) == count, "the number of rows differs");
        require(codes->codes.size() == count * dimension, "codes are missing");
        require(hnsw->hnsw.entry_point >= 0 && size_t(hnsw->hnsw.entry_point) < count, "the entry point is missing");
        require(hnsw->hnsw.levels.size() == count && hnsw->hnsw.offsets.size() == count + 1, "links are missing");
        auto graph = std::make_unique<Graph>();
        graph->index.reset(hnsw);
        index.release();
        *out = graph.release();
    });
}

int quorate_graph_search(const void* graph, const float* query, size_t wanted, size_t ef, const uint64_t* live, uint32_t* slots,
                         size_t* found, char* message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        const faiss::IndexHNSW& index = *static_cast<const Graph*>(graph)->index;
        const auto& storage = static_cast<const faiss::IndexScalarQuantizer&>(*index.storage);
        if (storage.sq.qtype == faiss::ScalarQuantizer::QT_8bit_direct) {
            *found = search_codes(index, storage, query, wanted, ef, live, slots);
            return;
        }
        LiveSelector selector(live);
        faiss::SearchParametersHNSW parameters;
        parameters.efSearch = int(ef);
        parameters.sel = live != nullptr ? &selector : nullptr;

        std::unique_ptr<faiss::DistanceComputer> distance(index.storage->get_distance_computer());
        if (faiss::is_similarity_metric(index.metric_type)) {
            distance = std::make_unique<faiss::NegativeDistanceComputer>(distance.release());
        }
        distance->set_query(query);

        std::vector<float> distances(wanted);
        std::vector<faiss::idx_t> labels(wanted);
        using Handler = faiss::HeapBlockResultHandler<faiss::HNSW::C>;
        Handler block(1, distances.data(), labels.data(), wanted);
        Handler::SingleResultHandler results(block);
        results.begin(0);
        faiss::VisitedTable& visited = visited_table(size_t(index.ntotal));
        visited.advance();
        index.hnsw.search(*distance, results, visited, &parameters);
        results.end();

        size_t count = 0;
        for (faiss::idx_t label : labels) {
            if (label >= 0) {
                slots[count++] = uint32_t(label);
            }
        }
        *found = count;
    });
}

void quorate_graph_free(void* graph) {
    delete static_cast<Graph*>(graph);
}

}  // extern "C"
