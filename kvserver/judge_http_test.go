package kvserver

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/embed"
)

// The plain HTTP paths answer with etcd's own status, headers and body, on the
// client port and on the one for metrics.
func TestHTTPAnswersAreEtcds(t *testing.T) {
	t.Parallel()
	metrics := map[string]string{}
	etcd, ours := bothSidesWith(t, func(etcd *embed.Config, ours *Config) {
		for name, listen := range map[string]func(url.URL){
			"etcd": func(u url.URL) { etcd.ListenMetricsUrls = []url.URL{u} },
			"ours": func(u url.URL) { ours.ListenMetricsURLs = []string{u.String()} },
		} {
			u := freeURL(t)
			listen(u)
			metrics[name] = u.String()
		}
	})
	ask := func(base, method, path string) string {
		answer := exchange{method: method, path: path}.answerTo(t, http.DefaultClient, base)
		head, body, _ := strings.Cut(answer, "\n\n")
		if strings.HasPrefix(path, "/readyz") {
			// etcd's checks run in the random order of a map.
			lines := strings.SplitAfter(body, "\n")
			slices.Sort(lines)
			body = strings.Join(lines, "")
		}
		return head + "\n\n" + body
	}
	for name, bases := range map[string][2]string{"clients": {etcd.url, ours.url}, "metrics": {metrics["etcd"], metrics["ours"]}} {
		for _, path := range []string{
			"/health", "/health?serializable=true", "/health?exclude=NOSPACE", "/health?exclude=", "/health?verbose", "/health/",
			"/livez", "/livez?verbose", "/livez?exclude=serializable_read&verbose", "/livez/serializable_read", "/livez/serializable_read?verbose", "/livez/linearizable_read",
			"/readyz", "/readyz?verbose", "/readyz?verbose&exclude=non_learner&exclude=nothing", "/readyz/data_corruption?verbose", "/readyz/serializable_read?verbose",
			"/readyz/linearizable_read?verbose", "/readyz/non_learner?verbose", "/readyz/nothing", "/readyz?exclude=&verbose=false",
			"/version", "/version/", "/nothing", "/", "//health", "/debug/pprof/", "/debug/nothing", "/members", "/proxy/metrics",
		} {
			for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions} {
				t.Run(name+" "+method+" "+path, func(t *testing.T) {
					if diff := cmp.Diff(ask(bases[0], method, path), ask(bases[1], method, path)); diff != "" {
						t.Errorf("the answer differs (-etcd +ours):\n%s", diff)
					}
				})
			}
		}
		heads := make([]string, 2)
		for i, base := range bases {
			answer := ask(base, http.MethodGet, "/metrics")
			if !strings.Contains(answer, "\netcd_server_has_leader 1\n") {
				t.Errorf("%s/metrics does not say that there is a leader", base)
			}
			heads[i], _, _ = strings.Cut(answer, "\n\n")
		}
		if heads[0] != heads[1] {
			t.Errorf("/metrics has the headers %q, want %q", heads[1], heads[0])
		}
	}
}
