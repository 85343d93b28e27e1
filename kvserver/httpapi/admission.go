package httpapi

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
)

// Admission decides about HTTP requests to the client port, by etcd's rules.
type Admission struct {
	// Origins may call from a browser (CORS); none, or "*", is all of them.
	Origins []string
	// Hosts are the names by which a client without TLS may call this member,
	// against DNS rebinding (CVE-2018-5702); none, or "*", is all of them.
	Hosts []string
	// NamesUsers reports whether a client's certificate says, to gRPC, which
	// user it is. The JSON gateway cannot, so such a client is refused there.
	NamesUsers func() bool
	Logger     *slog.Logger
}

// gatewayPath is where the JSON gateway begins; its older spelling means the
// same.
const (
	gatewayPath      = "/v3/"
	olderGatewayPath = "/v3beta/"
)

// Admit passes admitted requests on to next.
func (a Admission) Admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rest, older := strings.CutPrefix(r.URL.Path, olderGatewayPath); older {
			r.URL.Path = gatewayPath + rest
		}
		switch {
		case r.TLS == nil && !allows(a.Hosts, hostname(r)):
			host := hostname(r)
			a.Logger.Warn("refused an HTTP request for a host that is not on --host-whitelist", "host", host, "from", r.RemoteAddr)
			http.Error(w, unknownHost(host), http.StatusMisdirectedRequest)
			return
		case r.TLS != nil && strings.HasPrefix(r.URL.Path, gatewayPath) && a.NamesUsers() && named(r.TLS):
			http.Error(w, "CommonName of client sending a request against gateway will be ignored and not used as expected", http.StatusBadRequest)
			return
		}
		origin := r.Header.Get("Origin")
		if allows(a.Origins, "*") {
			origin = "*"
		}
		if allows(a.Origins, origin) {
			header := w.Header()
			header.Add("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
			header.Add("Access-Control-Allow-Origin", origin)
			header.Add("Access-Control-Allow-Headers", "accept, content-type, authorization")
		}
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusOK)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func allows(list []string, one string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, one)
}

func hostname(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		return host
	}
	return r.Host
}

func named(shown *tls.ConnectionState) bool {
	return slices.ContainsFunc(shown.VerifiedChains, func(chain []*x509.Certificate) bool {
		return len(chain) > 0 && chain[0].Subject.CommonName != ""
	})
}

// unknownHost is what etcd tells a client that calls it by an unknown name.
func unknownHost(host string) string {
	return fmt.Sprintf(`
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist %q

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
`, host)
}
