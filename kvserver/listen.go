package kvserver

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"

	"muster/kvserver/clientport"
	"muster/kvserver/httpapi"
)

// listenClients opens the ports for clients and for those who watch. As in etcd
// HTTP has its own ports or shares those of gRPC.
func (s *Server) listenClients(clientTLS *tls.Config, web httpapi.Config) error {
	handler := httpapi.NewClientHandler(web)
	shared := handler
	if len(s.config.ListenClientHTTPURLs) > 0 {
		shared = nil
	}
	for _, raw := range s.config.ListenClientURLs {
		if err := s.listenClient(raw, clientTLS, shared, s.grpc); err != nil {
			return err
		}
	}
	for _, raw := range s.config.ListenClientHTTPURLs {
		if err := s.listenClient(raw, clientTLS, handler, nil); err != nil {
			return err
		}
	}
	for _, raw := range s.config.ListenMetricsURLs {
		if err := s.listenMetrics(raw, clientTLS, httpapi.NewMetricsHandler(web)); err != nil {
			return err
		}
	}
	if err := s.sockets.Close(); err != nil {
		s.config.Logger.Warn("sockets are left over", "error", err)
	}
	return nil
}

func (s *Server) listenClient(raw string, clientTLS *tls.Config, handler http.Handler, server *grpc.Server) error {
	if strings.HasPrefix(raw, "http:") {
		if clientTLS != nil {
			s.config.Logger.Warn("clients are served without TLS here, although there is a certificate", "url", raw)
		}
		clientTLS = nil
	}
	port, err := clientport.Listen(hostPort(raw), clientport.Config{
		TLS: clientTLS, Handler: handler, Logger: s.config.Logger, Sockets: s.sockets.Listen,
		MaxConns: maxClients(), MaxConcurrentStreams: s.config.MaxConcurrentStreams,
	})
	if err != nil {
		return err
	}
	s.clients = append(s.clients, port)
	s.serve("clients", func() error { return port.Serve(server) })
	return nil
}

// listenMetrics serves health and metrics. As in etcd an https URL here uses
// the client port's certificate and asks for clients' in the same way.
func (s *Server) listenMetrics(raw string, clientTLS *tls.Config, handler http.Handler) error {
	listener, err := s.sockets.Listen("tcp", hostPort(raw))
	if err != nil {
		return fmt.Errorf("listen for metrics on %s: %w", raw, err)
	}
	if strings.HasPrefix(raw, "https:") {
		listener = tls.NewListener(listener, clientTLS)
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug),
	}
	s.probes = append(s.probes, server)
	s.serve("metrics", func() error { return server.Serve(listener) })
	return nil
}
