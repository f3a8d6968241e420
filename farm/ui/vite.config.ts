// How are the page's files made? Into dist/, each under a name that holds its hash; nothing is inlined, as the CSP forbids it.
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [svelte()],
  build: { outDir: "dist", emptyOutDir: true, assetsInlineLimit: 0, modulePreload: { polyfill: false }, target: "es2023" },
  server: { host: "127.0.0.1", proxy: { "/api": "http://127.0.0.1:8400" } },
});
