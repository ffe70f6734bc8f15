// Two more functions for LoadGen's Python binding: a query as a NumPy array over LoadGen's own memory, and answers
// from an array. tools.build_loadgen puts this into bindings/python_api.cc, inside the namespace mlperf::py; the file
// begins with the include of pybind11/numpy.h.

using IssueArrayCallback = std::function<void(pybind11::array)>;

class ArraySystemUnderTest : public FastSystemUnderTestTrampoline {
 public:
  ArraySystemUnderTest(IssueArrayCallback issue_cb, FlushQueriesCallback flush_queries_cb)
      : FastSystemUnderTestTrampoline("PyFastSUT", nullptr, flush_queries_cb), issue_array_cb_(issue_cb) {}

  // The array is of LoadGen's memory, which lives until the last of its samples has been answered.
  void IssueQuery(const std::vector<QuerySample>& samples) override {
    pybind11::gil_scoped_acquire gil_acquirer;
    pybind11::capsule not_owned(samples.data(), [](void*) {});
    pybind11::array array(pybind11::dtype::of<QuerySample>(), {static_cast<pybind11::ssize_t>(samples.size())}, {},
                          samples.data(), not_owned);
    array.attr("flags").attr("writeable") = false;
    issue_array_cb_(array);
  }

 private:
  IssueArrayCallback issue_array_cb_;
};

// To be destroyed by DestroyFastSUT.
uintptr_t ConstructArraySUT(IssueArrayCallback issue_cb, FlushQueriesCallback flush_queries_cb) {
  return reinterpret_cast<uintptr_t>(new ArraySystemUnderTest(issue_cb, flush_queries_cb));
}

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
  m.def("ConstructArraySUT", &ConstructArraySUT,
        "Construct the system under test; a query is an array of (id, index). Destroy it with DestroyFastSUT.");
  m.def("QuerySamplesCompleteArray", &QuerySamplesCompleteArray, pybind11::arg("responses").noconvert(),
        "As QuerySamplesComplete, from a contiguous array of (id, data, size, n_tokens).");
}
