// HNSW over 8-bit codes by FAISS as plain C functions. Every function catches every exception and answers 0, or 1 with a
// message; no C++ object crosses. The caller has checked lengths, ranges and numbers, because FAISS asserts end the process.

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
struct LiveSelector : faiss::IDSelector {
    const uint64_t* words;
    explicit LiveSelector(const uint64_t* words) : words(words) {}
    bool is_member(faiss::idx_t slot) const override {
        return (__atomic_load_n(&words[slot / 64], __ATOMIC_RELAXED) >> (slot % 64)) & 1;
    }
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
        try {
            index.hnsw.search(*distance, results, visited, &parameters);
        } catch (...) {
            // Marks of an unfinished search must not hide rows from the next one.
            visited.advance();
            throw;
        }
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
