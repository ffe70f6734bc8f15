// Four more functions for LoadGen's Python binding: a query as a NumPy array over LoadGen's own memory, short ones
// gathered until they are taken, and answers from an array. tools.build_loadgen puts this into bindings/python_api.cc,
// inside the namespace mlperf::py; the file begins with the includes that it takes.

using IssueArrayCallback = std::function<void(pybind11::array)>;
using DueCallback = std::function<void()>;

// Queries of fewer than `short_below` samples gather here: a call of Python for each, which has to wait for its
// interpreter, is what would bound the Server scenario. Python is called once `CallAt` so many samples are there.
class GatheringSystemUnderTest : public FastSystemUnderTestTrampoline {
 public:
  GatheringSystemUnderTest(IssueArrayCallback issue_cb, DueCallback due_cb, FlushQueriesCallback flush_queries_cb,
                           size_t short_below)
      : FastSystemUnderTestTrampoline("PyFastSUT", nullptr, flush_queries_cb),
        issue_array_cb_(issue_cb),
        due_cb_(due_cb),
        short_below_(short_below) {}

  // The array of a long query is of LoadGen's memory, which lives until the last of its samples has been answered.
  void IssueQuery(const std::vector<QuerySample>& samples) override {
    if (samples.size() >= short_below_) {
      pybind11::gil_scoped_acquire gil_acquirer;
      pybind11::array array = Array(samples, pybind11::capsule(samples.data(), [](void*) {}));
      array.attr("flags").attr("writeable") = false;
      issue_array_cb_(array);
    } else if (Gather(samples)) {
      pybind11::gil_scoped_acquire gil_acquirer;
      due_cb_();
    }
  }

  // What has gathered, as an array of its own, and when the first of it came, in seconds of the monotonic clock.
  pybind11::tuple Take() {
    auto taken = std::make_unique<std::vector<QuerySample>>();
    double since = 0.0;
    {
      std::lock_guard<std::mutex> hold(mutex_);
      taken->swap(gathered_);
      since = since_;
    }
    std::vector<QuerySample>* owned = taken.release();
    pybind11::capsule owner(owned, [](void* pointer) { delete static_cast<std::vector<QuerySample>*>(pointer); });
    return pybind11::make_tuple(Array(*owned, owner), since);
  }

  // Has `due` called once, when at least `count` samples have gathered; 0: never. Whether they have already.
  bool CallAt(size_t count) {
    std::lock_guard<std::mutex> hold(mutex_);
    const bool there = count > 0 && gathered_.size() >= count;
    call_at_ = there ? 0 : count;
    return there;
  }

 private:
  static pybind11::array Array(const std::vector<QuerySample>& samples, pybind11::capsule owner) {
    return pybind11::array(pybind11::dtype::of<QuerySample>(), {static_cast<pybind11::ssize_t>(samples.size())}, {},
                           samples.data(), owner);
  }

  // Whether it is time to call. Never with the interpreter's lock: whoever has that may wait for this one.
  bool Gather(const std::vector<QuerySample>& samples) {
    std::lock_guard<std::mutex> hold(mutex_);
    if (gathered_.empty())
      since_ = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    gathered_.insert(gathered_.end(), samples.begin(), samples.end());
    if (call_at_ == 0 || gathered_.size() < call_at_) return false;
    call_at_ = 0;
    return true;
  }

  IssueArrayCallback issue_array_cb_;
  DueCallback due_cb_;
  size_t short_below_;
  std::mutex mutex_;
  std::vector<QuerySample> gathered_;
  double since_ = 0.0;
  size_t call_at_ = 1;
};

// To be destroyed by DestroyFastSUT.
uintptr_t ConstructGatheringSUT(IssueArrayCallback issue_cb, DueCallback due_cb, FlushQueriesCallback flush_queries_cb,
                                size_t short_below) {
  return reinterpret_cast<uintptr_t>(new GatheringSystemUnderTest(issue_cb, due_cb, flush_queries_cb, short_below));
}

pybind11::tuple TakeGathered(uintptr_t sut) { return reinterpret_cast<GatheringSystemUnderTest*>(sut)->Take(); }

bool CallAt(uintptr_t sut, size_t count) { return reinterpret_cast<GatheringSystemUnderTest*>(sut)->CallAt(count); }

using Responses = pybind11::array_t<QuerySampleResponse, pybind11::array::c_style>;

void QuerySamplesCompleteArray(Responses responses) {
  QuerySampleResponse* data = responses.mutable_data();
  const size_t count = static_cast<size_t>(responses.size());
  pybind11::gil_scoped_release gil_releaser;
  mlperf::QuerySamplesComplete(data, count, {});
}

void AddArrays(pybind11::module_& m) {
  PYBIND11_NUMPY_DTYPE(QuerySample, id, index);
  PYBIND11_NUMPY_DTYPE(QuerySampleResponse, id, data, size, n_tokens);
  m.def("ConstructGatheringSUT", &ConstructGatheringSUT,
        "Construct the system under test: `issue` gets a query of `short_below` samples or more as an array of (id, "
        "index), shorter ones gather, and `due` is called as CallAt says. Destroy it with DestroyFastSUT.");
  m.def("TakeGathered", &TakeGathered, "What has gathered, as an array, and when the first of it came.");
  m.def("CallAt", &CallAt,
        "Have `due` called once, when so many samples have gathered (0: never); whether they have already.");
  m.def("QuerySamplesCompleteArray", &QuerySamplesCompleteArray, pybind11::arg("responses").noconvert(),
        "As QuerySamplesComplete, from a contiguous array of (id, data, size, n_tokens).");
}
