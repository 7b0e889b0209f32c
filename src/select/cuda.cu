// Not written yet: answers like a library without CUDA.
#include "select/cuda_absent.cpp"
