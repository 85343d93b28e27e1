package httpapi

import (
	"expvar"
	"net/http"
	"net/http/pprof"
	"runtime"
)

// mutexSamples is etcd's: one in five contentions is profiled.
const mutexSamples = 5

// handleProfiles serves profiles of the process below /debug/pprof/.
func handleProfiles(mux *http.ServeMux) {
	if runtime.SetMutexProfileFraction(-1) == 0 {
		runtime.SetMutexProfileFraction(mutexSamples)
	}
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

// handleVariables serves what expvar knows: the command line and the memory.
func handleVariables(mux *http.ServeMux) {
	mux.HandleFunc("/debug/vars", getOnly(expvar.Handler().ServeHTTP))
}
